"""What is kept of a trial: its folder, and every name that is written there."""
