"""The files of networks and evaluations, and every name that is written there."""
