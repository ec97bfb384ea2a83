"""Networks in ONNX files: read as modules that `bound` and `verify` take, and written. Needs the extra `onnx`."""

from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path

from torch import nn

from cerdeq.errors import OnnxError
from cerdeq.onnx.layers import OnnxNetwork


def load_onnx(path: str | PathLike[str]) -> OnnxNetwork:
    """Return the network of an ONNX file, in evaluation mode and float32: inputs [B, *shape] to outputs [B, *shape].

    Its layers are torch's own, so that `bound` and `verify` take it. Its `input_shape` and `output_shape` are those of
    one example. Dimension 0 is the batch: the file's network, for a batch of 1 or an input without a batch, is applied
    to each example. Outputs are compared with onnxruntime's at random points.

    Raises OnnxError for a file that is malformed or larger than 500 MB, numbers that are no float32 or not finite,
    several inputs or outputs, shapes that are not fixed, an operator without a layer, other outputs than onnxruntime's,
    and if the packages `onnx` and `onnxruntime` are missing.
    """
    return load_content(read_content(path), path)


def read_content(path: str | PathLike[str], largest: int | None = None) -> bytes:
    """Return all bytes that define the network of an ONNX file: of one with external data, a file with all of it.

    The file may be packed by gzip. largest: how many bytes it may have, unpacked; none may have more than 500 MB.
    Raises OnnxError for a file that is not read, as `load_onnx` does.
    """
    _require_packages()
    from cerdeq.onnx.file import LARGEST_FILE, read_bytes

    return read_bytes(Path(path), min(largest or LARGEST_FILE, LARGEST_FILE))


def load_content(content: bytes, path: str | PathLike[str], output_shape: tuple[int, ...] | None = None) -> OnnxNetwork:
    """Return the network in the bytes of an ONNX file.

    path: for messages. output_shape: of one example; a file with another one is refused before it is run, None for any.
    Raises OnnxError as `load_onnx` does.
    """
    _require_packages()
    from cerdeq.onnx.compare import Runtime, refuse_other_outputs
    from cerdeq.onnx.file import parse, refuse_another_shape
    from cerdeq.onnx.graph import network_of

    file = parse(content, Path(path), output_shape)
    network = network_of(file)
    try:
        refuse_another_shape(network.output_shape, output_shape)
    except OnnxError as error:
        raise OnnxError(f"{path}: {error}") from None
    refuse_other_outputs(network, Runtime(file, network.output_shape), file.path)
    return network


def export_onnx(network: nn.Module, path: str | PathLike[str], input_shape: Sequence[int]) -> None:
    """Write a network in evaluation mode to an ONNX file in float32, for batches of any size.

    A float64 network, such as `harness.load` returns, is written only if float32 holds all of its numbers exactly.
    The file is read again by `load_onnx`, which compares it with onnxruntime, and compared with the network.

    Args:
        input_shape: of one input, such as (3, 32, 32).

    Raises OnnxError for other numbers than those of float32, in training mode, for an operator that ONNX files here do
    not have, such as an equilibrium, and if the packages `onnx`, `onnxruntime` and `onnxscript` are missing.
    """
    _require_packages("onnxscript")
    from cerdeq.onnx.compare import refuse_another_network
    from cerdeq.onnx.export import exact_float32_copy, write_file

    path, shape, network = Path(path), tuple(input_shape), exact_float32_copy(network)
    draft = path.with_name(f"{path.name}.part")
    try:
        write_file(network, draft, shape)
        refuse_another_network(load_onnx(draft), network, shape, draft)
        draft.replace(path)
    except OSError as error:
        raise OnnxError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)


def _require_packages(*further: str) -> None:
    """Raise OnnxError if a package of the extra is missing."""
    try:
        for name in ("onnx", "onnxruntime", *further):
            import_module(name)
    except ImportError as error:
        names = "onnx, onnxruntime and, to write them, onnxscript"
        raise OnnxError(f"ONNX files need the packages {names}: install the extra `onnx` ({error})") from None
