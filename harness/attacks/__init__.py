"""Attacks, in training and in evaluation."""
