"""What bounds know of each operator: one file for each, with its interval rule, its backward rule and its record."""
