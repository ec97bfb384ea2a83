"""Prove verdicts again in NumPy. The package shares no arithmetic with training, bounds and evaluation."""
