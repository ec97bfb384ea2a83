"""Entries to the board: networks and verdicts of others, read and checked. Only the network of an entry is run."""
