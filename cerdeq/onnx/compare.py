"""An imported network against onnxruntime."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from cerdeq.errors import OnnxError
from cerdeq.onnx.file import File
from cerdeq.onnx.layers import OnnxNetwork, RunInFloat32

_POINTS, _TOLERANCE = 8, 1e-4  # of outputs, relative to the largest


def refuse_other_outputs(network: OnnxNetwork, run: RunInFloat32, path: Path) -> None:
    """Raise OnnxError if the network and onnxruntime differ at random points, by more than rounding in float32."""
    points = _points(network.input_shape)
    _compare(path, _outputs(network, points, path), run(points), "onnxruntime")


def refuse_another_network(written: nn.Module, network: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Raise OnnxError if a network that was written to a file, and read, differs from the original at random points."""
    points = _points(shape)
    _compare(path, _outputs(written, points, path), _outputs(network, points, path), "the original")


def _points(shape: tuple[int, ...]) -> np.ndarray:
    """Return random inputs [N, *shape]: half of them pixels in [0, 1], half of normal distribution."""
    generator = np.random.default_rng(0)
    pixels = generator.random((_POINTS // 2, *shape))
    return np.concatenate([pixels, generator.normal(size=pixels.shape)]).astype(np.float32)


def _outputs(network: nn.Module, points: np.ndarray, path: Path) -> np.ndarray:
    with torch.no_grad(), _named_errors(path, "torch"):
        return network(torch.from_numpy(points)).numpy()


def _compare(path: Path, computed: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Raise OnnxError if outputs differ."""
    if computed.shape != expected.shape:
        raise OnnxError(f"{path}: the network has outputs {list(computed.shape)}, {name} {list(expected.shape)}")
    for outputs, whose in ((expected, name), (computed, "the network as read")):
        if not np.isfinite(outputs).all():
            found = f"found outputs of {whose} that are infinite or no numbers"
            raise OnnxError(f"{path}: {found}: the weights or inputs are too large for float32")
    difference, scale = np.abs(computed - expected).max(), float(np.abs(expected).max())
    if difference > _TOLERANCE * scale:
        raise OnnxError(
            f"{path}: the network computes other outputs than {name}: they differ by up to {difference:.3g}, allowed: "
            f"{_TOLERANCE:g} times {scale:.3g}, the largest output; please report this file"
        )


class Runtime:
    """A file in onnxruntime, in float32: a function from points [N, *shape] to outputs [N, *output_shape].

    Each point is a batch of its own. All that is called raises OnnxError.
    """

    def __init__(self, file: File, output_shape: tuple[int, ...]):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        with _named_errors(file.path, "onnxruntime"):
            content, providers = file.model.SerializeToString(), ["CPUExecutionProvider"]
            self._session = onnxruntime.InferenceSession(content, options, providers=providers)
        self._file, self._output_shape = file, output_shape

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return the outputs of points."""
        outputs = np.stack([self._run(point.reshape(self._file.shape)) for point in points])
        if outputs.shape[1:] not in (self._output_shape, (1, *self._output_shape)):
            found = f"outputs {[*self._output_shape]}, onnxruntime {[*outputs.shape[1:]]}"
            raise OnnxError(f"{self._file.path}: the network has {found}")
        return outputs.reshape(-1, *self._output_shape)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        with _named_errors(self._file.path, "onnxruntime"):
            return self._session.run(None, {self._file.input: batch})[0]


@contextmanager
def _named_errors(path: Path, name: str) -> Iterator[None]:
    """Raise OnnxError, with the file's path, for any error of a library; onnxruntime's share no class."""
    try:
        yield
    except Exception as error:
        raise OnnxError(f"{path}: {name} cannot run it: {' '.join(str(error).split())[:300]}") from None
