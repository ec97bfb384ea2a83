"""What the code itself does: speed and tightness."""
