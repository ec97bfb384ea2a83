"""What a trial is: its radius, recipe, config and key, and the sweep files that name many."""
