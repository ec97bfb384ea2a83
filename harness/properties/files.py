"""Read a VNN-LIB file of version 1.0 or 2.0."""

from pathlib import Path

from harness.errors import InputError
from harness.properties.cases import Property, property_of
from harness.properties.expressions import parse, read_text
from harness.properties.version2 import expressions_of, is_version2


def read_property(path: Path) -> Property:
    """Return the property of a VNN-LIB file; a name that ends in .gz is that of a packed file. Raises InputError."""
    text = read_text(path)
    try:
        return property_of(expressions_of(text) if is_version2(text) else parse(text))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
