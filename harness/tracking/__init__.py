"""MLflow: what a sweep logs there, and the view of its charts."""
