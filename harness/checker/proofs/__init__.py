"""Proofs of one example, from certificates or without."""
