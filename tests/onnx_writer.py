"""Writes ONNX files for tests in less time than `cerdeq.export_onnx`, which it calls."""

from functools import cache
from pathlib import Path
from unittest.mock import patch

import cerdeq

_WRITTEN = {}


def export_onnx(network, path, input_shape):
    """As `cerdeq.export_onnx`; a chain of torch's own layers that was written before in this process is only copied."""
    tensors = list(network.state_dict().values())
    own = all(type(module).__module__.startswith("torch.nn.") for module in network.modules())
    own = own and all(tensor.device.type == "cpu" for tensor in tensors)
    numbers = [tensor.numpy().tobytes() for tensor in tensors] if own else []
    key = repr(network), network.training, tuple(input_shape), *numbers
    if own and key in _WRITTEN:
        Path(path).write_bytes(_WRITTEN[key])
        return
    with patch(f"{_REGISTRY}.from_torchlib", staticmethod(_operators())):
        cerdeq.export_onnx(network, path, input_shape)
    if own:
        _WRITTEN[key] = Path(path).read_bytes()


_REGISTRY = "torch.onnx._internal.exporter._registration.ONNXRegistry"


@cache
def _operators():
    """Return torch's list of operators, which it makes anew at each export."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry  # imported late: it is slow

    return cache(ONNXRegistry.from_torchlib)
