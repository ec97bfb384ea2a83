"""The radius of a perturbation."""

import re
from fractions import Fraction
from typing import Any, Self

from harness.errors import SettingError, require

_HUGE = re.compile(r"[eE][+-]?\d{4}")  # an exponent that a number would be computed from for hours


class Radius(Fraction):
    """An l-inf radius in pixel units, above 0 and at most 1, exact; as text over 255 where small, else in lowest terms.

    Made from a number or a text such as '8/255' or '0.1'. Raises SettingError for anything else.
    """

    def __new__(cls, value: object) -> Self:
        """As the class says."""
        numeric = isinstance(value, str | int | float | Fraction) and not isinstance(value, bool)
        numeric = numeric and not _HUGE.search(str(value))
        try:
            radius = super().__new__(cls, str(value) if numeric else "")
            str(radius)  # Python writes no integer of thousands of digits
        except (ValueError, ZeroDivisionError):
            found = str(value) if numeric else value
            raise SettingError("eps", found, "a number or a fraction such as 8/255") from None
        within = 0 < radius <= 1 and float(radius) > 0
        require("eps", str(value), within, "a radius in pixel units, above 0 and at most 1")
        return radius

    from_float = Fraction.from_float  # type: ignore[assignment]  # for comparisons with numbers that are no radius

    def __str__(self) -> str:
        levels = 255 * self
        return f"{levels}/255" if levels.denominator == 1 and levels <= 16 else super().__str__()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self),)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """How pydantic reads one, where there is pydantic: as the constructor does."""
        from pydantic_core import core_schema

        written = core_schema.union_schema([core_schema.str_schema(), core_schema.float_schema()])
        return core_schema.no_info_plain_validator_function(cls, json_schema_input_schema=written)
