"""MLflow: what a sweep logs there, the view that opens it, and trials made again from it."""
