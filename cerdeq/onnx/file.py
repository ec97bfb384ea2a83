"""An ONNX file, read and checked before anything is computed."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, numpy_helper

from cerdeq.onnx.errors import OnnxError

LARGEST_FILE = 500_000_000  # bytes
OPSETS = (7, onnx.defs.onnx_opset_version())  # before 7, constants were broadcast otherwise
_INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)  # of shapes and axes


@dataclass(frozen=True)
class File:
    """A file with one input and one output.

    path: for messages. opset: the version of its operators. constants: its stored numbers, by name. input, output:
    their names. shape: of one input, without the batch. is_batched: True if the batch may have any size; False if it
    must be 1.
    """

    path: Path
    model: onnx.ModelProto
    opset: int
    constants: dict[str, np.ndarray]
    input: str
    output: str
    shape: tuple[int, ...]
    is_batched: bool


def read_file(path: str | PathLike[str]) -> File:
    """Return the checked content of an ONNX file. Raises OnnxError as `load_onnx` says."""
    path = Path(path)
    try:
        return _read(path)
    except OnnxError as error:
        raise OnnxError(f"{path}: {error}") from None


def _read(path: Path) -> File:
    model = _parse(path)
    graph = model.graph
    opset = _opset(model)
    _load_external_data(model, path)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise OnnxError(f"not a valid ONNX model: {' '.join(str(error).split())[:300]}") from None
    if model.functions:  # they may replace ONNX's own operators
        raise OnnxError(f"found its own operator {model.functions[0].name!r}, allowed: the operators of ONNX itself")
    if graph.sparse_initializer:
        raise OnnxError("found sparse numbers, allowed: dense ones")
    constants = {tensor.name: array_of(tensor, f"initializer {tensor.name!r}") for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise OnnxError(f"found {len(inputs)} inputs and {len(graph.output)} outputs, allowed: one of each")
    shape, is_batched = _shape(inputs[0])
    return File(path, model, opset, constants, inputs[0].name, graph.output[0].name, shape, is_batched)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise OnnxError("not a file")
        _refuse_size(size)
        return onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise OnnxError(f"cannot be read: {error.strerror}") from None
    except DecodeError:
        raise OnnxError("not an ONNX file: it cannot be parsed") from None


def _refuse_size(size: int) -> None:
    if size > LARGEST_FILE:
        raise OnnxError(f"found {size / 1e6:.0f} MB, allowed: up to {LARGEST_FILE / 1e6:.0f} MB with external data")


def _opset(model: onnx.ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise OnnxError("not an ONNX file: it names no opset")
    if not OPSETS[0] <= versions[0] <= OPSETS[1]:
        raise OnnxError(f"found opset {versions[0]}, allowed: {OPSETS[0]} to {OPSETS[1]}")
    return versions[0]


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Read numbers that are stored in files beside the model's."""
    tensors = [t for t in model.graph.initializer if external_data_helper.uses_external_data(t)]
    if not tensors:
        return
    try:
        names = {external_data_helper.ExternalDataInfo(tensor).location for tensor in tensors}
        _refuse_size(sum((path.parent / name).stat().st_size for name in names))
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        if isinstance(error, OnnxError):
            raise
        raise OnnxError(f"external data cannot be read: {error}") from None


def array_of(tensor: TensorProto, name: str) -> np.ndarray:
    """Return a stored tensor: finite float32, or integers of a shape. Raises OnnxError for other numbers."""
    if tensor.data_type != TensorProto.FLOAT and tensor.data_type not in _INTEGERS:
        kind = TensorProto.DataType.Name(tensor.data_type)
        raise OnnxError(f"{name}: found numbers of type {kind}, allowed: FLOAT (float32); convert the network")
    if external_data_helper.uses_external_data(tensor):
        raise OnnxError(f"{name}: found external data, allowed: of initializers alone")
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise OnnxError(f"{name}: {error}") from None
    if not np.isfinite(array).all():
        raise OnnxError(f"{name}: found NaN or infinity, allowed: finite numbers")
    return array


def _shape(value: onnx.ValueInfoProto) -> tuple[tuple[int, ...], bool]:
    """Return the shape of one input, and whether the batch may have any size."""
    name, kind = f"input {value.name!r}", value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type != TensorProto.FLOAT:
        raise OnnxError(f"{name}: found another type, allowed: a tensor of FLOAT (float32)")
    if not kind.HasField("shape") or len(kind.shape.dim) < 2:
        raise OnnxError(f"{name}: found no shape of 2 or more dimensions; the first is the batch")
    first, *sizes = (dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    if not all(sizes):
        shape = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
        raise OnnxError(f"{name}: found shape {shape}, allowed: fixed sizes after the batch")
    if first not in (None, 0, 1):
        raise OnnxError(f"{name}: found a batch of {first}, allowed: 1, or any number")
    return tuple(size for size in sizes if size), first != 1
