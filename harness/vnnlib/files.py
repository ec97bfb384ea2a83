"""The files of an instance, an ONNX network and a VNN-LIB property: each is read once, hashed, and then parsed."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.common.errors import InputError
from harness.vnnlib.cases import Property, property_of
from harness.vnnlib.expressions import parse, without_comments
from harness.vnnlib.version2 import is_version2, property_of_version2

_LARGEST = 2**28  # bytes of a property


def read_property(path: Path) -> Property:
    """Return the property of a VNN-LIB file of version 1.0 or 2.0, which may be packed by gzip. Raises InputError."""
    return property_in(read_vnnlib(path), path)


def read_vnnlib(path: Path) -> bytes:
    """Return the bytes of a VNN-LIB file as they are stored. Raises InputError if it cannot be read."""
    from cerdeq.onnx.packed import read_stored  # imported late, as torch takes seconds

    try:
        return read_stored(path, _LARGEST)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def property_in(content: bytes, path: Path) -> Property:
    """Return the property in the bytes of a file. path: for messages. Raises InputError."""
    from cerdeq.onnx.packed import unpack

    try:
        code = without_comments(unpack(content, _LARGEST))
        with _no_garbage_collection():
            return property_of_version2(code) if is_version2(code) else property_of(parse(code))
    except ValueError as error:  # InputError among them
        raise InputError(f"{path}: {error}") from None


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect no garbage: nothing of a property's many small objects is any until it is read."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_network(path: Path) -> bytes:
    """Return all bytes that define an ONNX network, with those of external data. Raises InputError."""
    from cerdeq import OnnxError
    from cerdeq.onnx import read_content

    try:
        return read_content(path)
    except OnnxError as error:
        raise InputError(str(error)) from None


READERS = {"onnx": read_network, "vnnlib": read_vnnlib}
