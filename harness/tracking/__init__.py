"""MLflow: what a sweep logs there, the view of its charts, and trials restored from it."""


class TrackingError(RuntimeError):
    """MLflow cannot be reached, or refuses a request. The trial folders are not affected."""
