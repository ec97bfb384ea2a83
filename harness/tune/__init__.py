"""Running trials: one, or a sweep under Ray."""
