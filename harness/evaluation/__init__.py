"""Evaluation of a trained network: clean prediction, attack, verifier; one verdict for each example."""
