"""Prove a box of z = relu(W z + h): W contracts in a weighted norm, and the interval map takes the box into itself.

If |W| v < v for some v > 0, z is unique for every h (Collatz and Wielandt). A box that the interval map takes into
itself contains a fixed point for every h of its box (Brouwer), and that is z.
"""

import numpy as np
import torch
import torch.nn.functional as F

from harness.checker.bounds import monotone
from harness.checker.bounds.boxes import SLACK, TINY, Array, Box, U, add, affine, between, inside, intersect, relu
from harness.checker.bounds.windows import Windows, convolve, convolve_back

_POWER, _GUESSES, _FINAL = 1000, 2000, 4
_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-11}  # the relative change at which the iteration of a guess ends


class NotProvedError(Exception):
    """rho(|W|) < 1 could not be proved: there may be no equilibrium, or several."""


def equilibrium(weight: Array, h: Box, by_splitting: bool = True) -> Box:
    """Return a box of z for every h in the box [B, C, ...]; its radius is infinite where none is proved.

    by_splitting: whether z is solved for any strongly monotone W; else W must contract. Raises NotProvedError.
    """
    if (norm := prove_unique(weight, h.center.shape[1:], by_splitting)) is None:
        return monotone.equilibrium_boxes(weight, h)
    v, gap = (each.reshape(1, -1, *[1] * (h.center.ndim - 2)) for each in norm)
    z = _guess(weight, h)
    z = Box(z.center, z.radius + _scale_by_largest(_excess(_map(weight, h, z), z) / gap, v))
    proved = inside(_map(weight, h, z), z).reshape(-1, *[1] * (z.center.ndim - 1))
    z = tighten_by_map(weight, h, z)
    return Box(z.center, np.where(proved, z.radius, np.inf))


def contraction(weight: Array) -> tuple[Array, Array]:
    """Return v [C] > 0 with |W| v < v, and about v - |W| v. Raises NotProvedError if none is found.

    Sums over the kernel and the channels are rounded C k^2 times at most. Products that underflow are too small to
    count: v is at least 1e-6 over the largest sum.
    """
    v, image = _power_iteration(weight)
    if not (np.isfinite(v).all() and (v > 0).all() and (image < v).all()):
        raise NotProvedError(f"rho(|W|) < 1 is not proved: the bound is {np.max(image / v):.6f}")
    return v, v - image


def prove_unique(weight: Array, shape: tuple[int, ...], by_splitting: bool = True) -> tuple[Array, Array] | None:
    """Return a proof as `contraction` does, None if W does not contract but is strongly monotone. shape: of z.

    Raises NotProvedError if there is neither proof, or if W does not contract and z is not solved by splitting.
    """
    try:
        return contraction(weight)
    except NotProvedError as error:
        if not by_splitting:
            raise
        try:
            monotone.prove(monotone.dense(weight, shape))
        except monotone.NotMonotoneError as other:
            raise NotProvedError(f"{error}; {other}") from None
        return None


@monotone.once_a_weight
def _power_iteration(weight: Array) -> tuple[Array, Array]:
    """Return v [C] > 0, and at least |W| v."""
    matrix = np.abs(weight).reshape(*weight.shape[:2], -1).sum(2)
    if not np.isfinite(matrix).all():
        raise NotProvedError("W is not finite")
    v = np.ones(len(matrix))
    for _ in range(_POWER):
        v = matrix @ v + 1e-6 * v.max()
        v = v / v.max()
    return v, (matrix @ v) * (1 + SLACK * weight[0].size * U)


def preactivation(weight: Array, h: Box, z: Box) -> Box:
    """Return the box of p = W z + h over boxes of z and h. As z = relu(p), the ends of z bound p, too."""
    p = preactivation_box(weight, h, z)
    return intersect(p, between(np.where(z.lower > 0, z.lower, p.lower), z.upper))


def tighten_by_map(weight: Array, h: Box, z: Box) -> Box:
    """Intersect a box of z with its image under the map, a few times. It still contains every equilibrium in z."""
    for _ in range(_FINAL):
        z = intersect(z, _map(weight, h, z))
    return z


def apply_recurrence(weight: Array, z: Array) -> Array:
    """Return W z for z [B, ...]."""
    return z @ weight.T if weight.ndim == 2 else convolve(weight, z, Windows.around_each(weight))


def apply_recurrence_back(weight: Array, a: Array) -> Array:
    """Return W^T a for coefficients a [K, ...] of W z."""
    return a @ weight if weight.ndim == 2 else convolve_back(weight, a, a.shape[1:], Windows.around_each(weight))


def preactivation_box(weight: Array, h: Box, z: Box) -> Box:
    """Return the box of W z + h."""
    return add(affine(z, weight, None, apply_recurrence, weight[0].size), h)


def _map(weight: Array, h: Box, z: Box) -> Box:
    """Return the box of relu(W z + h)."""
    return relu(preactivation_box(weight, h, z))


def _guess(weight: Array, h: Box) -> Box:
    """Guess the interval equilibrium by plain iteration. Any guess is sound, since the box is proved afterwards.

    First in float32, which is fast, then in float64: the proof multiplies the guess's error by 1 / (1 - rho(|W|)).
    """
    start = Box(np.maximum(h.center, 0), np.zeros_like(h.radius))
    return _iterate(weight, h, _iterate(weight, h, start, torch.float32), torch.float64)


def _iterate(weight: Array, h: Box, start: Box, dtype: torch.dtype) -> Box:
    w, c, r, center, radius = (
        torch.from_numpy(a).to(dtype) for a in (weight, h.center, h.radius, start.center, start.radius)
    )

    def product(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, a) if a.dim() == 2 else F.conv2d(x, a, padding=a.shape[-1] // 2)

    for _ in range(_GUESSES):
        middle, spread = product(w, center) + c, product(w.abs(), radius) + r
        half = torch.relu(middle + spread) / 2
        new = torch.where(middle >= spread, middle, half), torch.where(middle >= spread, spread, half)
        change = max(float((a - b).abs().max()) for a, b in zip(new, (center, radius), strict=True))
        (center, radius), size = new, float(half.max())
        if not change > _TOLERANCE[dtype] * size:
            break
    return Box(center.double().numpy(), radius.double().numpy())


def _excess(inner: Box, outer: Box) -> Array:
    """Return a bit more than how far `inner` extends beyond `outer`, [B, ...]."""
    extent = np.abs(inner.center - outer.center) + inner.radius
    return np.maximum(extent - outer.radius, 0) * (1 + 1e-6) + 1e-12 * (extent + np.abs(inner.center))


def _scale_by_largest(multiples: Array, v: Array) -> Array:
    """Return each example's largest multiple times v, rounded up by more than `inside` needs."""
    largest = multiples.reshape(len(multiples), -1).max(1).reshape(-1, *[1] * (multiples.ndim - 1))
    return largest * v * (1 + 1e-9) + 4 * TINY + np.zeros_like(multiples)
