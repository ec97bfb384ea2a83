"""Windows of images and of sequences: convolutions as plain matrix products, and where poolings take windows."""

from dataclasses import dataclass

import numpy as np

from harness.checker.bounds.boxes import Array

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Windows:
    """How the windows of a convolution lie on values [B, C, *sizes], for each dimension of `sizes`.

    padding: zeros before and after.
    """

    stride: Sizes
    padding: tuple[tuple[int, int], ...]
    dilation: Sizes
    groups: int = 1

    @staticmethod
    def around_each(weight: Array) -> "Windows":
        """Return the windows of an odd kernel [O, C, *k] around each element."""
        once = (1,) * (weight.ndim - 2)
        return Windows(once, tuple((size // 2, size // 2) for size in weight.shape[2:]), once)


def convolve(weight: Array, x: Array, windows: Windows) -> Array:
    """Convolve x [B, C, *sizes] with weight [O, C / groups, *k], by plain matrix products."""
    groups, count = windows.groups, x.ndim - 2
    x = np.pad(x, ((0, 0), (0, 0), *windows.padding))
    x = x.reshape(len(x), groups, -1, *x.shape[2:])
    spans = [d * (k - 1) + 1 for d, k in zip(windows.dilation, weight.shape[2:], strict=True)]
    parts = np.lib.stride_tricks.sliding_window_view(x, spans, tuple(range(3, x.ndim)))
    parts = parts[:, :, :, *(slice(None, None, step) for step in (*windows.stride, *windows.dilation))]
    size = parts.shape[3 : 3 + count]
    rows = np.moveaxis(parts, (1, 2), (0, 2 + count)).reshape(groups, len(x) * int(np.prod(size)), -1)
    result = rows @ weight.reshape(groups, len(weight) // groups, -1).transpose(0, 2, 1)
    return np.moveaxis(result.reshape(groups, len(x), *size, -1), (0, -1), (1, 2)).reshape(len(x), -1, *size)


def convolve_back(weight: Array, a: Array, shape: Sizes, windows: Windows) -> Array:
    """Apply the transpose of `convolve` to coefficients a [K, O, *size] of its result: those of x, [K, *shape]."""
    groups, kernel = windows.groups, weight.shape[2:]
    padded = [before + size + after for (before, after), size in zip(windows.padding, shape[1:], strict=True)]
    image = np.zeros((len(a), groups, shape[0] // groups, *padded))
    part = used_part(a)
    a = a[part]
    matrix = weight.reshape(groups, len(weight) // groups, -1).transpose(0, 2, 1)
    taps = matrix @ a.reshape(len(a), groups, len(weight) // groups, -1)
    taps = taps.reshape(len(a), groups, -1, *kernel, *a.shape[2:])
    for tap in np.ndindex(kernel):
        starts = [
            s * pixels.start + d * t
            for s, pixels, d, t in zip(windows.stride, part[2:], windows.dilation, tap, strict=True)
        ]
        pixels = [slice(i, i + s * n, s) for i, s, n in zip(starts, windows.stride, a.shape[2:], strict=True)]
        image[:, :, :, *pixels] += taps[:, :, :, *tap]
    inner = [slice(before, before + size) for (before, _), size in zip(windows.padding, shape[1:], strict=True)]
    return image.reshape(len(a), shape[0], *padded)[:, :, *inner]


def used_part(a: Array) -> tuple[slice, ...]:
    """Return the smallest part of a [K, C, *sizes], by its elements of `sizes`, outside of which it is 0."""
    is_used = np.argwhere(np.any(a != 0, (0, 1)))
    if not len(is_used):
        return slice(None), slice(None), *(slice(0, 1),) * (a.ndim - 2)
    ends = zip(is_used.min(0).tolist(), is_used.max(0).tolist(), strict=True)
    return slice(None), slice(None), *(slice(first, last + 1) for first, last in ends)


def pool_windows(
    size: int, kernel: int, stride: int, padding: int, dilation: int = 1, ceil_mode: bool = False
) -> Array:
    """Return the elements of the windows of torch's pooling along a dimension of this size, [windows, kernel].

    Those below 0 and from `size` on are padding.
    """
    reach = dilation * (kernel - 1) + 1
    count = (size + 2 * padding - reach + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + padding:  # it would begin behind the image
        count -= 1
    elements: Array = np.arange(count)[:, None] * stride - padding + dilation * np.arange(kernel)
    return elements


def average_windows(
    size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, count_padding: bool
) -> tuple[Array, Array]:
    """Return the windows of torch's average pooling along a dimension, and what their sums are divided by [windows].

    Returns:
        Which elements each window has, 0 or 1 [windows, size], and its number of elements, with those of the padding,
        but not with those beyond it, if `count_padding`.
    """
    elements = pool_windows(size, kernel, stride, padding, ceil_mode=ceil_mode)
    inside = np.zeros((len(elements), size))
    windows, columns = np.nonzero((elements >= 0) & (elements < size))
    inside[windows, elements[windows, columns]] = 1
    return inside, (elements < size + padding).sum(1) if count_padding else inside.sum(1)


def adaptive_windows(size: int, count: int | None) -> tuple[Array, Array]:
    """Return the same for torch's adaptive average pooling to `count` elements; None: to as many as there are."""
    numbers, elements = np.arange(size if count is None else count)[:, None], np.arange(size)
    starts, ends = numbers * size // len(numbers), -(-(numbers + 1) * size // len(numbers))
    inside = ((elements >= starts) & (elements < ends)).astype(float)
    return inside, inside.sum(1)
