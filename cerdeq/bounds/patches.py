"""Coefficients of single neurons of a convolution: small windows of an image instead of whole ones (Xu et al. 2020).

A neuron depends on few pixels of the layers below. Its coefficients are a window [C, h, w] that lies somewhere on the
image and grows by a kernel with each layer. Each row's window is bounded like an example, with the boxes of the pixels
under it, by the same rules as complete images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cerdeq.operators import convolution
from cerdeq.operators.backward import Backward, Pulled, magnitude, slack
from cerdeq.operators.convolution import conv2d_constant, paddings, pair
from cerdeq.operators.interval import Interval
from cerdeq.operators.linear import linear_backward
from cerdeq.operators.record import Operator
from cerdeq.tracing.program import Program

_WINDOW_COPIES = 3  # of a window's coefficients beside their working copies: the boxes and lines under it


@dataclass(frozen=True)
class Patches:
    """values: [B, K, C, h, w], 0 outside the image; top, left: [B, K], where on the image, maybe outside, each begins.

    image: its height and width.
    """

    values: Tensor
    top: Tensor
    left: Tensor
    image: tuple[int, int]

    def dense(self) -> Tensor:
        """Return the coefficients [B, K, C, H, W] of the complete image."""
        (height, width), (h, w) = self.image, self.values.shape[3:]
        rows, columns = self._positions()
        index = (rows[..., :, None] + h) * (width + 2 * w) + columns[..., None, :] + w
        canvas = self.values.new_zeros(*self.values.shape[:3], (height + 2 * h) * (width + 2 * w))
        canvas.scatter_(3, index.flatten(2).unsqueeze(2).expand(*canvas.shape[:3], -1), self.values.flatten(3))
        return canvas.unflatten(3, (height + 2 * h, width + 2 * w))[..., h : h + height, w : w + width]

    def under(self, value: Tensor) -> Tensor:
        """Return the pixels of value [B, C, H, W] under each window: [B K, C, h, w], 0 outside the image."""
        h, w = self.values.shape[3:]
        windows = F.pad(value, (w, w, h, h)).unfold(2, h, 1).unfold(3, w, 1)
        example = torch.arange(len(value), device=value.device)[:, None]
        rows, columns = self._positions()
        return windows[example, :, rows[..., 0] + h, columns[..., 0] + w].flatten(0, 1)

    def inside(self) -> Tensor:
        """Return which pixels of each window lie on the image: [B, K, 1, h, w]."""
        rows, columns = self._positions()
        on_rows, on_columns = (rows >= 0) & (rows < self.image[0]), (columns >= 0) & (columns < self.image[1])
        return (on_rows[..., :, None] & on_columns[..., None, :]).unsqueeze(2)

    def _positions(self) -> tuple[Tensor, Tensor]:
        """Return rows [B, K, h] and columns [B, K, w]; a window that misses the image is moved to touch it."""
        positions = []
        for start, size, image_size in zip((self.top, self.left), self.values.shape[3:], self.image, strict=True):
            positions.append(start.clamp(-size, image_size)[..., None] + torch.arange(size, device=start.device))
        return positions[0], positions[1]


@dataclass(frozen=True)
class Units:
    """`sign`, 1 or -1, times single elements of a value [B, *shape], by their flat `index`; both [B, K]."""

    index: Tensor
    sign: Tensor
    shape: torch.Size

    def dense(self) -> Tensor:
        """Return the coefficients [B, K, *shape]."""
        hot = self.sign.new_zeros(*self.index.shape, self.shape.numel())
        return hot.scatter_(2, self.index.unsqueeze(2), self.sign.unsqueeze(2)).unflatten(2, self.shape)

    def through_linear(self, weight: Tensor, bias: Tensor | None = None) -> Pulled:
        """Return the result of a fully connected layer's backward rule: its rows, without rounding."""
        constant = torch.zeros_like(self.sign) if bias is None else bias[self.index] * self.sign
        return Pulled((weight[self.index].mul_(self.sign.unsqueeze(2)),), constant)


Coefficients = Tensor | Patches | Units


def one_hot(index: Tensor, sign: Tensor, shape: torch.Size) -> Coefficients:
    """Return `sign` (1 or -1) times single neurons of a value of this shape, by their flat index; both [B, K]."""
    if len(shape) != 3:
        return Units(index, sign, shape)
    channels, height, width = shape
    pixel = index % (height * width)
    hot = F.one_hot(index // (height * width), channels).to(sign) * sign.unsqueeze(2)
    return Patches(hot[..., None, None], pixel // width, pixel % width, (height, width))


def pull(ctx: Backward, record: Operator, coefficients: Coefficients, arguments: list[Any], options: Any) -> Any:
    """Return the result of the record's backward rule; in a sound pass windows stay windows if they can."""
    assert record.backward is not None, "trace has checked it"
    if isinstance(coefficients, Patches) and ctx.sound:
        if record.is_pointwise and _alike(coefficients, arguments):
            return _pull_pixels(ctx, record, coefficients, arguments, options)
        if record.windows == "convolution":
            return _pull_windows(ctx, record, coefficients, *arguments, **options)
    if isinstance(coefficients, Units) and record.backward is linear_backward and len(coefficients.shape) == 1:
        return coefficients.through_linear(*arguments[1:], **options)
    return record.backward(ctx, dense(coefficients), *arguments, **options)


def add_coefficients(a: Coefficients, b: Coefficients) -> Coefficients:
    """Return the sum of two coefficients of one value; windows stay windows if they lie alike."""
    if isinstance(a, Patches) and isinstance(b, Patches):
        down, right = (a.top - b.top).unique(), (a.left - b.left).unique()
        if len(down) == len(right) == 1:
            return _add_windows(a, b, int(down), int(right))
    return dense(a) + dense(b)


def dense(coefficients: Coefficients) -> Tensor:
    """Return coefficients of complete values."""
    return coefficients if isinstance(coefficients, Tensor) else coefficients.dense()


def rounding(ctx: Backward, coefficients: Coefficients, x: Interval) -> Tensor:
    """Return what rounding each coefficient of x once may cost, [B, K]; 0 if it is not counted."""
    if not isinstance(coefficients, Patches):
        return slack(ctx, dense(coefficients), magnitude(x), 1)
    rows = coefficients.values.flatten(0, 1).unsqueeze(1)
    return slack(ctx, rows, magnitude(_under(coefficients, x)), 1).view(coefficients.values.shape[:2])


def _add_windows(a: Patches, b: Patches, down: int, right: int) -> Patches:
    """Return the sum in one window; a begins `down` rows below and `right` columns right of b."""
    top, left = max(0, down), max(0, right)
    (ha, wa), (hb, wb) = a.values.shape[3:], b.values.shape[3:]
    h, w = max(top + ha, top - down + hb), max(left + wa, left - right + wb)
    padded = [
        F.pad(values, (x, w - x - values.shape[4], y, h - y - values.shape[3]))
        for values, y, x in ((a.values, top, left), (b.values, top - down, left - right))
    ]
    return Patches(padded[0] + padded[1], a.top - top, a.left - left, a.image)


def _alike(patches: Patches, arguments: list[Any]) -> bool:
    """Return whether bounded arguments have the windows' image size and channels, and constants one value a channel."""
    image = (patches.values.shape[2], *patches.image)
    boxes = [arg for arg in arguments if isinstance(arg, Interval)]
    constants = [arg for arg in arguments if isinstance(arg, Tensor)]
    per_channel = all(c.numel() == 1 or (2 < c.dim() < 4 and c.shape[-2:] == (1, 1)) for c in constants)
    return per_channel and all(tuple(box.center.shape[1:]) == image for box in boxes)


@dataclass
class _OverWindows(Backward):
    """A sound pass over windows: constants are those of complete images, under each row's window."""

    patches: Patches | None = None

    def constant(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return `Backward.constant`, tensors of a tuple as [B K, *window], [B K, 1, *window] or [B K, 1]."""
        value = super().constant(name, compute)
        if not isinstance(value, tuple):
            return value
        assert self.patches is not None
        images = [tensor.flatten(1, -3) for tensor in value if tensor.dim() > 2]
        key = self.step, f"{name}/images"
        if key not in self.constants:
            self.constants[key] = torch.cat(images, dim=1)
        under = iter(self.patches.under(self.constants[key]).split([image.shape[1] for image in images], dim=1))
        rows = self.patches.top.shape[1]
        return tuple(
            next(under).unflatten(1, tensor.shape[1:-2]) if tensor.dim() > 2 else tensor.repeat_interleave(rows, 0)
            for tensor in value
        )


def _under(patches: Patches, x: Interval) -> Interval:
    return Interval(patches.under(x.center), patches.under(x.radius))


def _pull_pixels(ctx: Backward, record: Operator, patches: Patches, arguments: list[Any], options: Any) -> Any:
    """Apply the rule of an operator that treats each pixel alike."""
    if record.windows == "constants":
        ctx = _OverWindows(**vars(ctx), patches=patches)
    else:
        ctx = replace(ctx, constants={})  # each row has boxes of its own
        arguments = [_under(patches, arg) if isinstance(arg, Interval) else arg for arg in arguments]
    pulled = record.backward(ctx, patches.values.flatten(0, 1).unsqueeze(1), *arguments, **options)  # type: ignore[misc]
    shape = patches.values.shape[:2]
    parts = [replace(patches, values=part.squeeze(1).unflatten(0, shape)) for part in pulled.coefficients]
    return Pulled(tuple(parts), pulled.constant.view(shape))  # type: ignore[arg-type]


def _pull_windows(
    ctx: Backward, record: Operator, patches: Patches, x: Interval, weight, bias=None, stride=1, padding=0, dilation=1,
    groups=1,
) -> Any:  # fmt: skip
    """Apply a convolution's rule to the windows, without padding, since their pixels outside the image are 0."""
    assert record.backward is not None
    stride, dilation, image = pair(stride), pair(dilation), x.center.shape[2:]
    before, _ = paddings(padding, weight.shape[2:], dilation)
    size = _input_window(patches.values.shape[3:], x, weight, bias, stride, padding, dilation, groups)
    if math.prod(size) >= math.prod(image):
        return record.backward(ctx, patches.dense(), x, weight, bias, stride, padding, dilation, groups)
    shape = patches.values.shape[:2]
    empty = x.center.new_zeros(()).expand(*shape, x.center.shape[1], *size)
    top, left = patches.top * stride[0] - before[0], patches.left * stride[1] - before[1]
    below = Patches(empty, top, left, (image[0], image[1]))
    rows = patches.values.flatten(0, 1).unsqueeze(1)
    options = stride, padding, dilation, groups
    constant = conv2d_constant(_OverWindows(**vars(ctx), patches=patches), rows, x, weight, bias, *options)
    pulled = convolution.conv_transpose2d(rows.squeeze(1), weight, None, stride, 0, 0, groups, dilation)
    values = pulled.unflatten(0, shape) * below.inside()
    return Pulled((replace(below, values=values),), constant.view(shape))  # type: ignore[arg-type]


def _input_window(
    window: tuple[int, ...], x: Interval, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
) -> tuple[int, ...]:
    """Return the size of the window of a convolution's input that a window of its result depends on."""
    axes = zip(window, pair(stride), pair(dilation), weight.shape[2:], strict=True)
    return tuple((n - 1) * s + d * (k - 1) + 1 for n, s, d, k in axes)


def window_sizes(program: Program, values: list[Any], at: int) -> list[float]:
    """Return how many numbers the windows of a neuron of value `at` take, with the boxes under them, by value number.

    Infinity where coefficients are of complete values.
    """
    windows: dict[int, tuple[int, ...]] = {at: (1, 1)} if values[at].center.dim() == 4 else {}
    for number in range(at, 0, -1):
        step = program.steps[number - 1]
        if number not in windows or step.record is None or step.record.windows is None:
            continue
        window = windows[number]
        if step.record.windows == "convolution":
            arguments, options = step.call(values)
            window = _input_window(window, *arguments, **options)
        windows |= {s: window if s not in windows else tuple(map(max, window, windows[s])) for s in step.sources}
    sizes = [math.inf] * len(values)
    for number, window in windows.items():
        sizes[number] = _WINDOW_COPIES * values[number].center.shape[1] * math.prod(window)
    return sizes
