"""Searches of settings: candidates in Optuna studies, what is proposed, rungs, and the results."""
