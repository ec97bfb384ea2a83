"""Strongly monotone layers with rho(|W|) of any size: proofs, solutions, bounds from multipliers, exact search."""
