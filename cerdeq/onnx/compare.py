"""An imported network against onnxruntime."""

import numpy as np
import onnxruntime
import torch

from cerdeq.onnx.errors import OnnxError
from cerdeq.onnx.file import File
from cerdeq.onnx.layers import OnnxNetwork

_POINTS, _TOLERANCE = 8, 1e-4  # of outputs, relative to the largest


def refuse_other_outputs(network: OnnxNetwork, file: File) -> None:
    """Raise OnnxError if the network and onnxruntime differ at random points, by more than rounding in float32."""
    generator = np.random.default_rng(0)
    half = generator.random((_POINTS // 2, *file.shape))
    points = np.concatenate([half, generator.normal(size=half.shape)]).astype(np.float32)
    expected = onnxruntime_outputs(file, points)
    with torch.no_grad():
        computed = network(torch.from_numpy(points)).numpy()
    if computed.shape != expected.shape:
        raise OnnxError(f"{file.path}: read with outputs {computed.shape}, onnxruntime has {expected.shape}")
    difference, scale = np.abs(computed - expected).max(), np.abs(expected).max()
    if not difference <= _TOLERANCE * scale:  # also where one is not a number
        raise OnnxError(
            f"{file.path}: the network that was read computes other outputs than onnxruntime: they differ by up to "
            f"{difference:.3g}, outputs by onnxruntime are up to {scale:.3g}; please report this file"
        )


def onnxruntime_outputs(file: File, points: np.ndarray) -> np.ndarray:
    """Return the outputs of points [N, *shape] by onnxruntime, float32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            file.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        batches = [points] if file.is_batched else np.split(points, len(points))
        return np.concatenate([session.run(None, {file.input: batch})[0] for batch in batches])
    except Exception as error:  # onnxruntime's errors share no class
        raise OnnxError(f"{file.path}: onnxruntime cannot run it: {' '.join(str(error).split())[:300]}") from None
