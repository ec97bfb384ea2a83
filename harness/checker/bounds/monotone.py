"""Strongly monotone equilibria z = relu(W z + h): proof, first boxes. A convolution is read as its dense matrix.

Let S be the symmetric part of I - W. If K^T S K is within delta < 1 of the identity for some K, S is positive definite
and z is unique. Two equilibria of h and h' satisfy w . S w <= w . g with w = z - z', g = h - h'; so w = K y, where y
lies in the ball around v / 2 of radius |v| / 2, v = K^T g / (1 - delta). docs/developers/monotone.md has the proofs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from harness.checker.bounds.boxes import (
    SLACK,
    TINY,
    Array,
    Box,
    U,
    add,
    between,
    intersect,
    magnitude,
    relu,
    widen_for_rounding,
)
from harness.checker.bounds.windows import Windows, convolve

_SPLITTING_STEPS, _NEWTON, _SOLVED = 3000, 1e-14, 1e-9
_WEIGHT_STEPS, _NORM_STEPS = 30, 30
_VECTORS, _FIRST_ROUNDS = 8, 20  # of the subspace iteration for the inputs' weights
_IMAGES = 20
_MOST_UNITS = 4000  # of a convolution's matrix

P = ParamSpec("P")
T = TypeVar("T")


class NotMonotoneError(Exception):
    """Strong monotonicity could not be proved."""


@dataclass(frozen=True)
class Proof:
    """W [N, N], K [N, N] and delta."""

    weight: Array
    root: Array
    delta: float

    @cached_property
    def square(self) -> Box:
        """K K^T."""
        return multiply(exact(self.root), exact(self.root.T))


@dataclass(frozen=True)
class AffineMap:
    """v -> matrix [K, N] v + offset [K], off by at most error [K]."""

    matrix: Array
    offset: Array
    error: Array


def multiply(a: Box, b: Box) -> Box:
    """Return the box of the product of two matrices."""
    terms = a.center.shape[-1]
    relative = SLACK * (terms + 4) * U
    size_a, size_b = magnitude(a), magnitude(b)
    radius = np.abs(a.center) @ b.radius + a.radius @ size_b + relative * (size_a @ size_b)
    return Box(a.center @ b.center, radius * (1 + relative) + 2 * (terms + 4) * TINY)


def once_a_weight(function: Callable[Concatenate[Array, P], T]) -> Callable[Concatenate[Array, P], T]:
    """Return a function of W that computes its result again only if W, of this shape, has other entries."""
    results = dict[object, tuple[Array, T]]()

    @wraps(function)
    def cached(weight: Array, /, *args: P.args, **kwargs: P.kwargs) -> T:
        key = weight.shape, args
        if key not in results or not np.array_equal(results[key][0], weight):
            results[key] = weight.copy(), function(weight, *args, **kwargs)
        return results[key][1]

    return cached


@once_a_weight
def dense(weight: Array, shape: tuple[int, ...]) -> Array:
    """Return the matrix [N, N] of W on flat values of `shape`; a convolution [C, C, k, k] is padded with zeros.

    Raises NotMonotoneError for a convolution of too many units.
    """
    if weight.ndim == 2:
        return weight
    units = int(np.prod(shape))
    if units > _MOST_UNITS:
        raise NotMonotoneError(f"strong monotonicity of a convolution is checked up to {_MOST_UNITS} units")
    parts = np.array_split(np.eye(units).reshape(units, *shape), units // 64 + 1)  # together they need too much memory
    columns = np.concatenate([convolve(weight, part, Windows.around_each(weight)) for part in parts])
    return columns.reshape(units, units).T.copy()


@once_a_weight
def prove(weight: Array) -> Proof:
    """Return a proof for W [N, N]. Raises NotMonotoneError."""
    identity = np.eye(len(weight))
    half = widen_for_rounding((identity - weight) / 2, np.zeros_like(weight))
    symmetric = add(half, Box(half.center.T, half.radius.T))
    try:
        root = np.linalg.inv(np.linalg.cholesky(symmetric.center)).T
    except np.linalg.LinAlgError:
        raise NotMonotoneError("I - (W + W^T) / 2 is not positive definite") from None
    product = multiply(exact(root.T), multiply(symmetric, exact(root)))
    defect = sum_up(magnitude(add(product, exact(-identity)))).max()
    if not defect < 1:
        raise NotMonotoneError(f"I - (W + W^T) / 2 is not proved to be positive definite: off by {defect:.3g}")
    return Proof(weight, root, float(defect))


def equilibrium_boxes(weight: Array, h: Box) -> Box:
    """Return a box [B, ...] of the equilibria of all h in the box [B, ...]. Raises NotMonotoneError."""
    shape = h.center.shape
    weight, h = dense(weight, shape[1:]), Box(h.center.reshape(shape[0], -1), h.radius.reshape(shape[0], -1))
    proof = prove(weight)
    z, exact_h = _solve(weight, h.center)
    change = add(h, Box(-exact_h.center, exact_h.radius))
    norm = _norm(magnitude(multiply(change, exact(proof.root))))
    box = _cut_by_images(weight, h, _ball(proof, z, multiply(change, proof.square), norm))
    return Box(box.center.reshape(shape), box.radius.reshape(shape))


def _cut_by_images(weight: Array, h: Box, z: Box) -> Box:
    """Return the box z [B, N] cut by its images: z_i = relu(sum over j != i of W_ij z_j + h_i) / (1 - W_ii)."""
    own = np.diagonal(weight)
    divisor = 1 - own  # above 0, since the symmetric part of I - W is positive definite
    others = exact((weight - np.diag(own)).T)
    for _ in range(_IMAGES):
        image = relu(add(multiply(z, others), h))
        low, high = image.lower / divisor * (1 - SLACK * U), image.upper / divisor * (1 + SLACK * U)
        z = intersect(z, between(low - TINY, high + TINY))
    return z


def first_box(proof: Proof, inject: AffineMap, x: Box) -> Box:
    """Return a box [N] of the equilibria of all inject(x), x [d] in the box."""
    k, matrix = exact(proof.root), exact(inject.matrix)
    middle = add(multiply(matrix, exact(x.center)), Box(inject.offset, inject.error))
    (z,), exact_h = _solve(proof.weight, middle.center[None])
    moved = multiply(exact(proof.root.T), matrix)
    moved = widen_for_rounding(moved.center * x.radius, moved.radius * x.radius)
    shift = multiply(exact(proof.root.T), add(middle, Box(-exact_h.center[0], exact_h.radius[0])))
    norm, middle = _largest_norm(moved) + _norm(magnitude(shift)), multiply(k, shift)
    reach = sum_up(magnitude(multiply(k, moved)))
    return _ball(proof, z, Box(middle.center, (middle.radius + reach) * (1 + SLACK * U)), norm)


def _ball(proof: Proof, z: Array, linear: Box, norm: Array) -> Box:
    """Return z + K y for all y in the ball, cut at 0. linear: (1 - delta) K v. norm: (1 - delta) |v|."""
    share = 0.5 / (1 - proof.delta) * (1 + SLACK * U)
    radius = (linear.radius + _norm(np.abs(proof.root)) * np.asarray(norm)[..., None]) * share
    radius = radius + np.abs(linear.center) * (share - 0.5 + SLACK * U)
    box = widen_for_rounding(z + linear.center / 2, radius, np.abs(z) + np.abs(linear.center))
    low, high = np.maximum(box.lower, 0), np.maximum(box.upper, 0)
    result = between(low, high)
    is_finite = np.isfinite(result.radius) & np.isfinite(result.center)
    return Box(np.where(is_finite, result.center, 0), np.where(is_finite, result.radius, np.inf))


def _solve(weight: Array, h: Array) -> tuple[Array, Box]:
    """Return z [B, N] near the equilibria of h, and the box of the h whose equilibria they are exactly."""
    gap, step, inverse = _splitting(weight)
    u, z = np.zeros_like(h), np.zeros_like(h)
    for _ in range(_SPLITTING_STEPS):
        u = 2 * ((2 * z - u + step * h) @ inverse) - (2 * z - u)
        following = np.maximum(u, 0)
        change, z = np.abs(following - z).max(initial=0), following
        size = np.abs(z).max(initial=0)  # z may stay at 0 for some steps while u moves
        if not change > _NEWTON * size and np.abs(np.maximum(z @ weight.T + h, 0) - z).max(initial=0) <= _SOLVED * size:
            break
    for i in range(len(z)):  # one Newton step for the signs of W z + h
        active = np.flatnonzero(z[i] @ weight.T + h[i] > 0)
        newton = np.zeros_like(z[i])
        try:
            newton[active] = np.maximum(np.linalg.solve(gap[np.ix_(active, active)], h[i, active]), 0)
        except np.linalg.LinAlgError:
            continue
        if _residual(weight, h[i], newton) < _residual(weight, h[i], z[i]):
            z[i] = newton
    z = np.where(np.isfinite(z), z, 0)
    product = multiply(exact(z), exact(weight.T))
    needed = add(exact(z), Box(-product.center, product.radius))
    is_free = (z == 0) & (h <= needed.center - needed.radius)
    return z, Box(np.where(is_free, h, needed.center), np.where(is_free, 0, needed.radius))


@once_a_weight
def _splitting(weight: Array) -> tuple[Array, float, Array]:
    """Return I - W, the step t of the splitting, and the transpose of the inverse of I + t (I - W)."""
    gap = np.eye(len(weight)) - weight
    v = np.linspace(1, 2, len(weight))
    for _ in range(_NORM_STEPS):
        v = gap.T @ (gap @ v)
        v = v / max(np.linalg.norm(v), TINY)
    least, largest = np.linalg.eigvalsh((gap + gap.T) / 2)[0], max(float(np.linalg.norm(gap @ v)), TINY)
    step = 1 / np.sqrt(max(least, 1e-6) * largest)
    return gap, step, np.linalg.inv(np.eye(len(weight)) + step * gap).T


def _residual(weight: Array, h: Array, z: Array) -> float:
    return float(np.abs(np.maximum(weight @ z + h, 0) - z).max(initial=0))


def _largest_norm(matrix: Box) -> Array:
    """Return at least the largest |M t|, t in [-1, 1]^d: by rows, or by an eigenvalue with weights of the inputs."""
    by_rows, roots = _norm(sum_up(magnitude(matrix))), _input_scales(matrix.center)
    scaled = widen_for_rounding(matrix.center * roots, matrix.radius * roots)
    square = multiply(scaled, Box(scaled.center.T, scaled.radius.T))
    vectors = np.linalg.eigh((square.center + square.center.T) / 2)[1]
    defect = sum_up(magnitude(add(multiply(exact(vectors.T), exact(vectors)), exact(-np.eye(len(vectors)))))).max()
    reach = sum_up(magnitude(multiply(exact(vectors.T), multiply(square, exact(vectors))))).max()
    total = sum_up(1 / (roots * roots) * (1 + SLACK * U))
    eigenvalue = reach / (1 - defect) if defect < 0.5 else np.inf
    by_eigenvalue = np.sqrt(eigenvalue * total) * (1 + SLACK * U)
    return np.fmin(by_rows, by_eigenvalue)


def _input_scales(matrix: Array) -> Array:
    """Return 1 / sqrt(s), s weights of the inputs for which the eigenvalue's bound is small. Any are sound.

    The leading eigenvectors are those of a subspace iteration.
    """
    squares = (matrix * matrix).sum(0)
    floor = squares.max() * 1e-12 + 1e-300
    weights = best = np.ones(matrix.shape[1])
    lowest = np.inf
    vectors = np.linalg.qr(matrix[:, np.argsort(-squares)[:_VECTORS]])[0]
    for step in range(_WEIGHT_STEPS):
        scaled = matrix / np.sqrt(weights)
        for _ in range(_FIRST_ROUNDS if step == 0 else 2):
            vectors = np.linalg.qr(scaled @ (scaled.T @ vectors))[0]
        image = scaled.T @ vectors
        values, turn = np.linalg.eigh(image.T @ image)
        vectors = vectors @ turn
        if values[-1] * weights.sum() < lowest:
            lowest, best = values[-1] * weights.sum(), weights
        near = np.exp((values[-5:] / max(values[-1], 1e-300) - 1) * 10)
        response = np.sqrt((((vectors[:, -5:] * near).T @ matrix) ** 2).sum(0) + floor)
        weights = weights**0.7 * (response / response.mean() * weights.mean()) ** 0.3
    return 1 / np.sqrt(best)


def exact(values: Array) -> Box:
    """Return the box of exact numbers."""
    return Box(values, np.zeros_like(values))


def sum_up(values: Array) -> Array:
    """Return at least the sum over the last dimension of numbers of at least 0."""
    return values.sum(-1) * (1 + SLACK * (values.shape[-1] + 2) * U) + TINY


def _norm(rows: Array) -> Array:
    return np.sqrt(sum_up(rows * rows * (1 + SLACK * U) + TINY)) * (1 + SLACK * U)
