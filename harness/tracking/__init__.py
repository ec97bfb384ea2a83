"""MLflow: what a sweep logs there, and the view of its charts."""

from harness.common.errors import InputError


class TrackingError(InputError):
    """MLflow cannot be reached, or refuses a request. The trial folders are not affected."""
