"""Networks of ONNX files, for data sets whose images they take."""

import hashlib
from collections import OrderedDict
from math import prod

import torch
from torch import nn

from baselines.layers import Shape
from baselines.registry import register
from cerdeq.onnx import OnnxError, load_content, read_content
from cerdeq.onnx.layers import Apply

BYTES_A_NUMBER = 2**18  # of a file, for each number of an image; CNN-7 needs a quarter of that


@register("onnx")
def onnx(shape: Shape, classes: int, width: float = 1.0, *, file: str, sha256: str = "") -> nn.Sequential:
    """Return the network of an ONNX file, with the file's weights.

    file: its path, relative to the working directory. Its inputs may be images as [channels, height, width] or as
    [height, width, channels]; where there is one channel, pixels in any other shape, row by row.
    sha256: of the file; of one with external data, of one file that holds all of it. Empty for any file.

    Raises OnnxError for a file that `cerdeq.load_onnx` refuses or that has more than BYTES_A_NUMBER for each number of
    an image, other inputs or outputs, and another width than 1.
    """
    if width != 1:
        raise OnnxError(f"width: found {width}, allowed: 1, for the file has the width")
    content = read_content(file, BYTES_A_NUMBER * prod(shape))
    digest = hashlib.sha256(content).hexdigest()
    if sha256 not in ("", digest):
        raise OnnxError(f"{file}: found the SHA-256 {digest}, allowed: {sha256}")
    network = load_content(content, file, output_shape=(classes,))
    layout = _layout(network.input_shape, shape, file)
    return nn.Sequential(OrderedDict([*([] if layout is None else [("layout", layout)]), ("network", network)]))


def _layout(inputs: tuple[int, ...], image: Shape, file: str) -> nn.Module | None:
    """Return the layer from images to what the network takes, None if these are the same."""
    channels, height, width = image
    if inputs == image:
        return None
    if inputs == (height, width, channels):
        return Apply(torch.permute, (0, 2, 3, 1))
    if channels == 1 and inputs == (height * width,):
        return nn.Flatten()
    if channels == 1 and sorted(size for size in inputs if size > 1) in ([height, width], [height * width]):
        return Apply(torch.reshape, (-1, *inputs))
    allowed = f"{list(image)} or {[height, width, channels]}"
    raise OnnxError(f"{file}: found inputs {list(inputs)}, allowed: {allowed}, the data set's images")
