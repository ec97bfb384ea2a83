"""Radii of perturbations, as exact fractions of the range of a pixel."""

from fractions import Fraction
from typing import Any, Self

from pydantic_core import core_schema

from harness.common.errors import SettingError, require

_LARGEST_EXPONENT = 999  # of a radius, which a float must hold


class Radius(Fraction):
    """An exact l-inf radius in pixel units, above 0 and at most 1. As text it is over 255 where small: 8/255.

    It is made from a number or a text such as '8/255' or '0.1'; a pickle or a copy also names the denominator. Raises
    SettingError for anything else.
    """

    def __new__(cls, value: object, denominator: int = 1) -> Self:
        """Return the radius `value / denominator`."""
        is_number = isinstance(value, str | int | float | Fraction) and not isinstance(value, bool)
        text = str(value) if is_number else ""
        try:
            if abs(int(text.lower().partition("e")[2] or 0)) > _LARGEST_EXPONENT:  # it would take minutes
                raise ValueError
            fraction = Fraction(text) / denominator
        except (ValueError, ZeroDivisionError):
            raise SettingError("eps", value, "a number or a fraction such as 8/255") from None
        is_radius = 0 < fraction <= 1 and float(fraction) > 0
        hint = f"; did you mean {fraction}/255?" if fraction.denominator == 1 < fraction <= 255 else ""
        require("eps", str(value), is_radius, f"a radius in pixel units, above 0 and at most 1{hint}")
        return super().__new__(cls, fraction)

    from_float = Fraction.from_float  # type: ignore[assignment]  # for comparisons with floats that are no radius

    def __str__(self) -> str:
        levels = 255 * self
        return f"{levels}/255" if levels.denominator == 1 and levels <= 16 else super().__str__()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Let pydantic call the constructor, and write the text."""
        return core_schema.no_info_plain_validator_function(
            cls,
            json_schema_input_schema=core_schema.union_schema([core_schema.str_schema(), core_schema.float_schema()]),
            serialization=core_schema.to_string_ser_schema(when_used="json"),
        )


def parse_radii(text: str) -> tuple[Radius, ...]:
    """Return the radii of a list such as '2/255,4/255', as options of commands have it. Raises SettingError."""
    return tuple(Radius(part) for part in text.split(","))
