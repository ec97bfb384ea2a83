"""Provides oracles that share no code with cerdeq: exact rational arithmetic, dense matrices, points of boxes."""

from fractions import Fraction
from math import isqrt

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq import Box

DTYPES = [torch.float32, torch.float64]


class Lambda(nn.Module):
    """A module made of a function of (itself, x); `tensors` become its parameters."""

    def __init__(self, function, **tensors):
        super().__init__()
        self.function = function
        for name, value in tensors.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x):
        return self.function(self, x)


def random_box(*shape: int, scale: float = 1.0, dtype=torch.float64) -> Box:
    """Return a box some of whose radii are 0."""
    radius = scale * torch.rand(shape, dtype=dtype) * (torch.rand(shape) > 0.2)
    return Box(scale * torch.randn(shape, dtype=dtype), radius)


def points_of(box: Box, count: int) -> Tensor:
    """Return points of a box, [count, B, ...], half of them corners."""
    inside = 2 * torch.rand(count, *box.center.shape, dtype=box.center.dtype) - 1
    inside[::2] = torch.sign(inside[::2])
    return box.center + inside * box.radius


@torch.no_grad()
def dense_affine(function, shape: tuple[int, ...], dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """Return the matrix and the offset of an affine function of one example, read off at basis vectors."""
    size = int(np.prod(shape))
    offset = function(torch.zeros(1, *shape, dtype=dtype)).flatten()
    images = [function(row.view(1, *shape)).flatten() - offset for row in torch.eye(size, dtype=dtype)]
    return torch.stack(images, dim=1), offset


def dense_operator(weight: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Return an equilibrium's W as a matrix on flattened values of this shape."""
    if weight.dim() == 2:
        return weight.numpy()
    return dense_affine(lambda z: F.conv2d(z, weight, padding=weight.shape[-1] // 2), shape)[0].numpy()


def affine_extremes(matrix: Tensor, offset: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Return the exact minimum and maximum of each component over a box: lower = W+ l + W- u + b."""
    low, high = (box.center - box.radius).flatten(1), (box.center + box.radius).flatten(1)
    positive, negative = matrix.clamp(min=0), matrix.clamp(max=0)
    return low @ positive.T + high @ negative.T + offset, high @ positive.T + low @ negative.T + offset


def fractions(values: Tensor) -> list:
    """Return a tensor as nested lists of exact Fractions."""
    if values.dim() == 0:
        return Fraction(values.item())
    return [fractions(value) for value in values]


def exact(values) -> np.ndarray:
    """Return numbers as an array of exact Fractions."""
    array = np.asarray(values.detach() if isinstance(values, Tensor) else values, dtype=np.float64)
    return np.array([Fraction(float(value)) for value in array.ravel()], dtype=object).reshape(array.shape)


def root_below_and_above(value: Fraction) -> tuple[Fraction, Fraction]:
    """Return two Fractions below and above the square root of `value`, closer to it than any float."""
    scale = 1 << 400
    floor = isqrt(value.numerator * scale * scale // value.denominator)
    return Fraction(floor, scale), Fraction(floor + 1, scale)


def exact_value(layers, x: list[Fraction]) -> list[Fraction]:
    """Return the outputs at a point of linear layers, (leaky) ReLUs and blocks x + branch(x)."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            offset = [Fraction(0)] * layer.out_features if layer.bias is None else fractions(layer.bias)
            rows = zip(fractions(layer.weight), offset, strict=True)
            x = [sum((w * v for w, v in zip(row, x, strict=True)), b) for row, b in rows]
        elif hasattr(layer, "branch"):
            x = [a + b for a, b in zip(x, exact_value(layer.branch, x), strict=True)]
        else:
            slope = Fraction(getattr(layer, "negative_slope", 0.0))
            x = [v if v >= 0 else slope * v for v in x]
    return x


def lost(dtype, count: int) -> Tensor:
    """Return 1 and many halves of its last digit: summed in few parts, most of them are lost."""
    values = torch.full((count,), torch.finfo(dtype).eps / 2, dtype=dtype)
    values[0] = 1
    return values


class Exact:
    """Exact interval arithmetic on vectors of Fractions, one example."""

    def __init__(self, low: list[Fraction], high: list[Fraction]):
        self.low, self.high = low, high

    @classmethod
    def of(cls, box: Box, example: int = 0) -> "Exact":
        center, radius = fractions(box.center[example].flatten()), fractions(box.radius[example].flatten())
        return cls(
            [c - r for c, r in zip(center, radius, strict=True)], [c + r for c, r in zip(center, radius, strict=True)]
        )

    def affine(self, matrix: list[list[Fraction]], offset: list[Fraction] | None = None) -> "Exact":
        offset = offset or [Fraction(0)] * len(matrix)
        low, high = [], []
        for row, b in zip(matrix, offset, strict=True):
            at_low = [w * (lo if w >= 0 else hi) for w, lo, hi in zip(row, self.low, self.high, strict=True)]
            at_high = [w * (hi if w >= 0 else lo) for w, lo, hi in zip(row, self.low, self.high, strict=True)]
            low.append(sum(at_low, b))
            high.append(sum(at_high, b))
        return Exact(low, high)

    def relu(self) -> "Exact":
        return Exact([max(v, Fraction(0)) for v in self.low], [max(v, Fraction(0)) for v in self.high])

    def hull(self, other: "Exact") -> "Exact":
        low = [min(a, b) for a, b in zip(self.low, other.low, strict=True)]
        return Exact(low, [max(a, b) for a, b in zip(self.high, other.high, strict=True)])

    def inside(self, lower: Tensor, upper: Tensor) -> bool:
        """Return whether the floats `lower` and `upper` enclose it, exactly."""
        enclosing = zip(fractions(lower.flatten()), self.low, self.high, fractions(upper.flatten()), strict=True)
        return all(a <= b and c <= d for a, b, c, d in enclosing)


def encloses(box: Box, exact: Exact, example: int = 0) -> bool:
    """Return whether a box of floats contains an exact one."""
    mine = Exact.of(box, example)
    ends = zip(mine.low, exact.low, exact.high, mine.high, strict=True)
    return all(a <= b and c <= d for a, b, c, d in ends)


def assert_contains(lower: Tensor, upper: Tensor, values: Tensor, tolerance: float = 1e-12) -> None:
    """Check that values [..., B, K] lie in [lower, upper] up to the rounding of `values` themselves."""
    slack = tolerance * (1 + values.abs().max())
    assert lower.isfinite().all() and upper.isfinite().all()
    below, above = (lower - values).max().item(), (values - upper).max().item()
    assert below <= slack, f"{below:.3g} below the lower bound"
    assert above <= slack, f"{above:.3g} above the upper bound"
