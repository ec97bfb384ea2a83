"""Judging a trained network: clean prediction, attack, certificate; one verdict an example."""
