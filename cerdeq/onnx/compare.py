"""An imported network against onnxruntime."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from cerdeq.onnx.errors import OnnxError
from cerdeq.onnx.file import File
from cerdeq.onnx.layers import OnnxNetwork

_POINTS, _TOLERANCE = 8, 1e-4  # of outputs, relative to the largest


def refuse_other_outputs(network: OnnxNetwork, file: File) -> None:
    """Raise OnnxError if the network and onnxruntime differ at random points, by more than rounding in float32."""
    points = _points(file.shape)
    _compare(file.path, _outputs(network, points), onnxruntime_of(file)(points), "onnxruntime")


def refuse_another_network(written: nn.Module, network: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Raise OnnxError if a network that was written to a file, and read, differs from the original at random points."""
    points = _points(shape)
    _compare(path, _outputs(written, points), _outputs(network, points), "the original")


def _points(shape: tuple[int, ...]) -> np.ndarray:
    """Return random inputs [N, *shape]: half of them pixels in [0, 1], half of normal distribution."""
    generator = np.random.default_rng(0)
    pixels = generator.random((_POINTS // 2, *shape))
    return np.concatenate([pixels, generator.normal(size=pixels.shape)]).astype(np.float32)


def _outputs(network: nn.Module, points: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(points)).numpy()


def _compare(path: Path, computed: np.ndarray, expected: np.ndarray, name: str) -> None:
    if computed.shape != expected.shape:
        raise OnnxError(f"{path}: the network has outputs {list(computed.shape)}, {name} {list(expected.shape)}")
    difference, scale = np.abs(computed - expected).max(), np.abs(expected).max()
    if not difference <= _TOLERANCE * scale:  # also where one is not a number
        raise OnnxError(
            f"{path}: the network computes other outputs than {name}: they differ by up to {difference:.3g}, allowed: "
            f"{_TOLERANCE:g} times {scale:.3g}, the largest output; please report this file"
        )


def onnxruntime_of(file: File) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from points [N, *shape] to their outputs by onnxruntime, float32; both raise OnnxError."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with _named_errors(file.path):
        content, providers = file.model.SerializeToString(), ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(content, options, providers=providers)

    def run(points: np.ndarray) -> np.ndarray:
        batches = [points] if file.is_batched else np.split(points, len(points))
        with _named_errors(file.path):
            return np.concatenate([session.run(None, {file.input: batch})[0] for batch in batches])

    return run


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Raise OnnxError, with the file's path, for any error of onnxruntime; these share no class."""
    try:
        yield
    except Exception as error:
        raise OnnxError(f"{path}: onnxruntime cannot run it: {' '.join(str(error).split())[:300]}") from None
