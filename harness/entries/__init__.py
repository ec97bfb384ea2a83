"""Entries to the board: networks and verdicts of others, read and checked. Nothing in an entry is run or trusted."""
