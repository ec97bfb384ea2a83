"""What all parts of a sweep file have in common: no unknown keys, no values of another type."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A mapping of a sweep file; what stands below a field says what it means."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
