"""Searching settings: candidates in folders, Optuna, which proposes them, and what came of it."""
