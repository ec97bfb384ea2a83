"""What bounds know of each operator: the table in operators.py, and the rules that it names."""
