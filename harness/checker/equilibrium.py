"""The box of z = relu(W z + h), proved: W contracts in some weighted norm, and the box maps into itself.

With |W| v < v for a v > 0, z is unique for every h (Collatz and Wielandt); a box that the interval map takes into
itself holds a fixed point for every h of its box (Brouwer), which is that one.
"""

import numpy as np
import torch
import torch.nn.functional as F

from harness.checker import boxes
from harness.checker.boxes import SLACK, TINY, Array, Box, U, affine, between, inside, intersected, relu, rounded

_POWER, _GUESSES, _FINAL = 1000, 2000, 4
_CLOSE = {torch.float32: 1e-6, torch.float64: 1e-11}  # how little a guess moves at last, over its size


class NotProvedError(Exception):
    """rho(|W|) < 1 could not be proved: there may be no equilibrium, or many."""


def equilibrium(weight: Array, h: Box) -> Box:
    """The box of z for every h in the box [B, C, ...]; radius infinity where none is proved. Raises NotProvedError."""
    v, room = contraction(weight)
    shape = (1, -1, *[1] * (h.center.ndim - 2))
    v, room = v.reshape(shape), room.reshape(shape)
    z = _guess(weight, h)
    z = Box(z.center, z.radius + _times(_excess(_map(weight, h, z), z) / room, v))
    proved = inside(_map(weight, h, z), z)
    if not proved.all():
        whole = _times(np.maximum(h.upper, 0) / room, v)
        closed = Box(whole / 2, whole / 2)
        z = _chosen(proved, z, closed)
        proved = proved | inside(_map(weight, h, z), z)
    z = contracted(weight, h, z)
    return _chosen(proved, z, Box(z.center, np.full_like(z.radius, np.inf)))


def contraction(weight: Array) -> tuple[Array, Array]:
    """v [C] > 0 and at most v - |W| v, above 0. Raises NotProvedError where none is found."""
    matrix = np.abs(weight).reshape(*weight.shape[:2], -1).sum(2)
    if not np.isfinite(matrix).all():
        raise NotProvedError("W is not finite")
    terms = weight[0].size + 2
    matrix = matrix * (1 + SLACK * terms * U) + terms * TINY
    v = np.ones(len(matrix))
    for _ in range(_POWER):
        v = matrix @ v + 1e-6 * v.max()
        v = v / v.max()
    image = (matrix @ v) * (1 + SLACK * terms * U) + terms * TINY
    room = (v - image) * (1 - SLACK * U) - SLACK * U * v
    if not (np.isfinite(v).all() and (v > 0).all() and (room > 0).all()):
        raise NotProvedError(f"rho(|W|) < 1 has no proof: at best {np.max(image / v):.6f}")
    return v, room


def preactivation(weight: Array, h: Box, z: Box) -> Box:
    """The box of p = W z + h, over boxes of z and h. At an equilibrium z = relu(p): p lies within z's ends, too."""
    p = _before(weight, h, z)
    return intersected(p, between(np.where(z.lower > 0, z.lower, p.lower), z.upper))


def contracted(weight: Array, h: Box, z: Box) -> Box:
    """A box that holds every equilibrium that z holds: z within its own image, a few times."""
    for _ in range(_FINAL):
        z = intersected(z, _map(weight, h, z))
    return z


def recurrent(weight: Array, z: Array) -> Array:
    """W z, for z [B, ...]."""
    return z @ weight.T if weight.ndim == 2 else boxes.convolved(weight, z, 1, weight.shape[-1] // 2)


def recurrent_back(weight: Array, a: Array) -> Array:
    """W^T a, for coefficients a [K, ...] of W z."""
    return a @ weight if weight.ndim == 2 else boxes.convolved_back(weight, a, a.shape[1:], 1, weight.shape[-1] // 2)


def _before(weight: Array, h: Box, z: Box) -> Box:
    wz = affine(z, weight, None, recurrent, weight[0].size)
    return rounded(wz.center + h.center, wz.radius + h.radius, 1, np.abs(wz.center) + np.abs(h.center))


def _map(weight: Array, h: Box, z: Box) -> Box:
    """The box of relu(W z + h)."""
    return relu(_before(weight, h, z))


def _guess(weight: Array, h: Box) -> Box:
    """About the interval equilibrium, by plain iteration: nothing of it is trusted.

    First in float32, which is fast, then in float64: what is missed grows by 1 / (1 - rho(|W|)) as the box is proved.
    """
    start = Box(np.maximum(h.center, 0), np.zeros_like(h.radius))
    return _iterated(weight, h, _iterated(weight, h, start, torch.float32), torch.float64)


def _iterated(weight: Array, h: Box, start: Box, dtype: torch.dtype) -> Box:
    w, c, r, center, radius = (
        torch.from_numpy(a).to(dtype) for a in (weight, h.center, h.radius, start.center, start.radius)
    )

    def product(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, a) if a.dim() == 2 else F.conv2d(x, a, padding=a.shape[-1] // 2)

    for _ in range(_GUESSES):
        middle, reach = product(w, center) + c, product(w.abs(), radius) + r
        half = torch.relu(middle + reach) / 2
        new = torch.where(middle >= reach, middle, half), torch.where(middle >= reach, reach, half)
        moved = max(float((a - b).abs().max()) for a, b in zip(new, (center, radius), strict=True))
        (center, radius), size = new, float(half.max())
        if not moved > _CLOSE[dtype] * size:
            break
    return Box(center.double().numpy(), radius.double().numpy())


def _excess(inner: Box, outer: Box) -> Array:
    """How far `inner` sticks out of `outer`, and a little more, [B, ...]."""
    reach = np.abs(inner.center - outer.center) + inner.radius
    return np.maximum(reach - outer.radius, 0) * (1 + 1e-6) + 1e-12 * (reach + np.abs(inner.center))


def _times(multiples: Array, v: Array) -> Array:
    """The largest multiple of each example, times v, rounded up by more than `inside` asks for."""
    most = multiples.reshape(len(multiples), -1).max(1).reshape(-1, *[1] * (multiples.ndim - 1))
    return most * v * (1 + 1e-9) + 4 * TINY + np.zeros_like(multiples)


def _chosen(choose: Array, a: Box, b: Box) -> Box:
    mask = choose.reshape(-1, *[1] * (a.center.ndim - 1))
    return Box(np.where(mask, a.center, b.center), np.where(mask, a.radius, b.radius))
