"""Attacks, in training and in judging."""
