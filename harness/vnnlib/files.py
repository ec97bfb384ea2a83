"""The files of an instance, an ONNX network and a VNN-LIB property: each is read once, hashed, and then parsed."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from os.path import isfile  # also of names that are too long, unlike Path's
from pathlib import Path

import numpy as np

from cerdeq import OnnxError
from cerdeq.onnx import LoadedFile, OnnxNetwork, load_content, read_content
from cerdeq.onnx.packed import read_stored, unpack
from harness.common.errors import InputError, shorten
from harness.pretrained.network_file import digest_of
from harness.storage.instances import Record
from harness.vnnlib.brackets import parse, without_comments
from harness.vnnlib.properties import Property
from harness.vnnlib.version1 import property_of
from harness.vnnlib.version2 import is_version2, property_of_version2

_LARGEST = 2**28  # bytes of a property


def read_vnnlib(path: Path) -> bytes:
    """Return the bytes of a VNN-LIB file as they are stored. Raises InputError if it cannot be read."""
    try:
        return read_stored(path, _LARGEST)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def property_in(content: bytes, path: Path) -> Property:
    """Return the property in the bytes of a file of version 1.0 or 2.0, which may be packed by gzip.

    path: for messages. Raises InputError.
    """
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
    try:
        return read_content(path)
    except OnnxError as error:
        raise InputError(str(error)) from None


READERS = {"onnx": read_network, "vnnlib": read_vnnlib}


def load_instance(contents: tuple[bytes, bytes], paths: tuple[Path, Path]) -> tuple[Property, LoadedFile]:
    """Return the property and the network of an instance: that of the logits if only their order matters.

    contents: of the network's file and of the property's. paths: of these, for messages. Raises InputError.
    """
    property_ = property_in(contents[1], paths[1])
    boxes = {id(case.box): case.box for case in property_.cases}.values()
    try:
        loaded = load_content(contents[0], paths[0], drop_softmax=property_.is_order)
        check_shapes(property_, loaded.network, f"{paths[1]} for {paths[0]}")
        from cerdeq.onnx.compare import refuse_other_outputs_in  # late: `load_content` says if packages are missing

        ends = ((np.array(box.lower, float), np.array(box.upper, float)) for box in boxes)
        refuse_other_outputs_in(ends, loaded.network, loaded.run, paths[0])
    except OnnxError as error:
        raise InputError(str(error)) from None
    return property_, loaded


def check_shapes(property_: Property, network: OnnxNetwork, where: str) -> None:
    """Raise InputError unless the property declares the network's inputs and outputs.

    Shapes are compared without sizes of 1: these do not change the order of numbers.
    """
    shapes = network.input_shape, network.output_shape
    found, allowed = (property_.inputs, property_.outputs), tuple(map(prod, shapes))
    if found != allowed:
        sizes = f"{found[0]} inputs and {found[1]} outputs, allowed: {allowed[0]} and {allowed[1]}, as the network has"
        raise InputError(f"{where}: found {sizes}")
    for declared, shape in zip(property_.declared or (), shapes, strict=False):
        if [size for size in declared.shape if size > 1] != [size for size in shape if size > 1]:
            shown = f"found the shape {[*declared.shape]} of {shorten(declared.name)}"
            raise InputError(f"{where}: {shown}, allowed: {[1, *shape]}, as the network has")


def load_recorded(record: Record) -> tuple[Property, LoadedFile]:
    """Return the property and the network of a record. Raises InputError unless they are those that it names."""
    paths = {kind: Path(record[kind]) for kind in READERS}
    for path in paths.values():
        if not isfile(path):
            raise InputError(f"{path} is missing: put it back, or run harness.verify again")
    contents = {kind: _read_recorded(kind, path, record[f"{kind}_sha256"]) for kind, path in paths.items()}
    return load_instance((contents["onnx"], contents["vnnlib"]), (paths["onnx"], paths["vnnlib"]))


def _read_recorded(kind: str, path: Path, digest: str) -> bytes:
    changed = f"{path} has changed since it was verified"
    try:
        content = READERS[kind](path)
    except InputError as error:
        raise InputError(f"{changed}: {error}") from None
    if digest_of(content) != digest:
        raise InputError(changed)
    return content
