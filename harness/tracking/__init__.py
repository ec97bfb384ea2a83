"""MLflow: what a sweep logs there, the view of its charts, and trials restored from it."""

from harness.common.errors import InputError


class TrackingError(InputError):
    """MLflow cannot be reached, or refuses a request. The trial folders are not affected."""
