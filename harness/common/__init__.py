"""Names, errors and texts that all packages use."""
