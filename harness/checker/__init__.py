"""A second opinion on verdicts, in NumPy: all that it shares with training and judging is what networks are."""
