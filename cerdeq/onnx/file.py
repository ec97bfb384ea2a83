"""An ONNX file, read and checked before anything is computed."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, numpy_helper

from cerdeq.errors import OnnxError
from cerdeq.onnx.packed import read_stored, refuse_size, unpack

LARGEST_FILE = 500_000_000  # bytes, unpacked, with external data
MOST_VALUES = 2**26  # numbers of all values of one example, and of computed constants
OPSETS = (7, onnx.defs.onnx_opset_version())  # before 7, constants were broadcast otherwise
_INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)  # of shapes and axes


@dataclass(frozen=True)
class File:
    """A file with one input and one output.

    path: for messages. model: without nodes that the output does not need. opset: the version of its operators.
    constants: its stored numbers, by name. input, output: their names. shape: of the input, with a batch of 1 as the
    first of two or more dimensions.
    """

    path: Path
    model: onnx.ModelProto
    opset: int
    constants: dict[str, np.ndarray]
    input: str
    output: str
    shape: tuple[int, ...]


def read_bytes(path: Path, largest: int = LARGEST_FILE) -> bytes:
    """Return all bytes that define the network of a file: its own, or, of one with external data, one file of all.

    largest: how many there may be, unpacked. Raises OnnxError for a file that cannot be read, is too large, or has
    external data elsewhere than in its folder.
    """
    try:
        content = read_stored(path, largest)
        model = _parse(content, largest)
        tensors = [t for t in model.graph.initializer if external_data_helper.uses_external_data(t)]
        if not tensors:
            return content
        _load_external_data(tensors, path.parent, largest)
        return model.SerializeToString(deterministic=True)
    except OSError as error:
        raise OnnxError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # OnnxError among them
        raise OnnxError(f"{path}: {error}") from None


def parse(content: bytes, path: Path, output_shape: tuple[int, ...] | None = None) -> File:
    """Return the checked content of an ONNX file.

    path: for messages. output_shape: the only one allowed for one example, if the file says which it has. Raises
    OnnxError as `load_onnx` says.
    """
    try:
        model = _parse(content)
        refuse_another_shape(_declared_output(model.graph), output_shape)
        return _read(model, path)
    except OnnxError as error:
        raise OnnxError(f"{path}: {error}") from None


def refuse_another_shape(found: tuple[int, ...] | None, allowed: tuple[int, ...] | None) -> None:
    """Raise OnnxError if the shape of the outputs is another one; None is any."""
    if found is not None and allowed is not None and found != allowed:
        raise OnnxError(f"found outputs {[*found]}, allowed: {[*allowed]}, one for each class")


def _declared_output(graph: onnx.GraphProto) -> tuple[int, ...] | None:
    """Return the output's shape without its batch, if the file says it. That may be wrong: nothing is computed."""
    dimensions = graph.output[0].type.tensor_type.shape.dim[1:] if graph.output else []
    sizes = tuple(dimension.dim_value for dimension in dimensions)
    return sizes if sizes and all(size > 0 for size in sizes) else None


def _parse(content: bytes, largest: int = LARGEST_FILE) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(unpack(content, largest))
    except DecodeError:
        raise OnnxError("not an ONNX file: it cannot be parsed") from None
    except ValueError as error:
        raise OnnxError(str(error)) from None


def _load_external_data(tensors: list[TensorProto], folder: Path, largest: int) -> None:
    """Read numbers that are stored in files beside the model's; onnx refuses links, devices and other folders."""
    try:
        names = {external_data_helper.ExternalDataInfo(tensor).location for tensor in tensors}
        refuse_size(sum((folder / name).stat().st_size for name in names), largest)
        size = 0
        for tensor in tensors:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            size += len(tensor.raw_data)
            refuse_size(size, largest)
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise OnnxError(f"external data cannot be read: {error}") from None


def _read(model: onnx.ModelProto, path: Path) -> File:
    graph = model.graph
    opset = _opset(model)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise OnnxError(f"not a valid ONNX model: {' '.join(str(error).split())[:300]}") from None
    if model.functions:  # they may replace ONNX's own operators
        raise OnnxError(f"found its own operator {model.functions[0].name!r}, allowed: the operators of ONNX itself")
    if graph.sparse_initializer:
        raise OnnxError("found sparse numbers, allowed: dense ones")
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise OnnxError(f"found {len(inputs)} inputs and {len(graph.output)} outputs, allowed: one of each")
    needed = _drop_other_nodes(graph)
    constants = {t.name: array_of(t, f"initializer {t.name!r}") for t in graph.initializer if t.name in needed}
    return File(path, model, opset, constants, inputs[0].name, graph.output[0].name, _shape(inputs[0]))


def _drop_other_nodes(graph: onnx.GraphProto) -> set[str]:
    """Remove the nodes that the output does not need; return the names that the others read."""
    needed = {graph.output[0].name}
    for position in reversed(range(len(graph.node))):  # each stands behind those whose results it reads
        if needed.intersection(graph.node[position].output):
            needed.update(graph.node[position].input)
        else:
            del graph.node[position]
    del graph.value_info[:]
    return needed


def _opset(model: onnx.ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise OnnxError("not an ONNX file: it names no opset")
    if not OPSETS[0] <= versions[0] <= OPSETS[1]:
        raise OnnxError(f"found opset {versions[0]}, allowed: {OPSETS[0]} to {OPSETS[1]}")
    return versions[0]


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


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return the shape of the input."""
    name, kind = f"input {value.name!r}", value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type != TensorProto.FLOAT:
        raise OnnxError(f"{name}: found another type, allowed: a tensor of FLOAT (float32)")
    if not kind.HasField("shape") or not kind.shape.dim:
        raise OnnxError(f"{name}: found no shape")
    shape = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
    first, *sizes = shape if len(shape) > 1 else (1, *shape)
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise OnnxError(f"{name}: found shape {shape}, allowed: fixed sizes after the batch")
    if isinstance(first, int) and first not in (0, 1):
        raise OnnxError(f"{name}: found a batch of {first}, allowed: 1, or any number")
    if prod(sizes) > MOST_VALUES:
        raise OnnxError(f"{name}: found shape {shape}, allowed: up to {MOST_VALUES} numbers")
    return tuple(sizes) if len(shape) == 1 else (1, *sizes)
