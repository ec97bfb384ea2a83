"""First boxes of an equilibrium, from strong monotonicity alone; the notation is that of proof.py."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cerdeq.boxes import Box, outward_ends
from cerdeq.deadline import check
from cerdeq.equilibrium.monotone.enclosure import Enclosure, largest_eigenvalue, rounded_up, sum_rounded_up
from cerdeq.equilibrium.monotone.proof import Monotonicity
from cerdeq.operators.interval import Context, between, widen_sum, widen_terms

_WEIGHT_STEPS = 30  # of the search for good weights of the inputs
_LEADING, _VECTORS = 5, 8  # eigenvectors that it looks at, and iterates
_FIRST_ROUNDS = 20  # of subspace iteration


@dataclass(frozen=True)
class AffineMap:
    """A map v -> matrix [K, N] v + offset [K], off by at most error [K] for all v of the box it was made for."""

    matrix: Tensor
    offset: Tensor
    error: Tensor

    def range_over(self, box: Box) -> Enclosure:
        """Return the map's values over a box of v [N], of a center and a radius."""
        product = Enclosure.exact(self.matrix) @ Enclosure(box.center[:, None], box.radius[:, None])
        return Enclosure(product.value[:, 0], product.error[:, 0]) + Enclosure(self.offset, self.error)


def equilibrium_point(proof: Monotonicity, h: Tensor) -> tuple[Tensor, Enclosure]:
    """Return z0 [B, N] near the equilibria of h [B, N], and the h0 whose equilibria they are exactly.

    Active units need h0 = z0 - W z0, the others at most -W z0.
    """
    z = proof.splitting.solve(h).value.nan_to_num(posinf=0.0)
    product = Enclosure.exact(z) @ Enclosure.exact(proof.weight.mT)
    needed = Enclosure.exact(z) - product
    is_free = (z == 0) & (h <= needed.value - needed.error)
    zero = torch.zeros_like(h)
    return z, Enclosure(torch.where(is_free, h, needed.value), torch.where(is_free, zero, needed.error))


def equilibrium_boxes(proof: Monotonicity, h: Box) -> Box:
    """Return the box [B, N] of the equilibria of all h in a box; its radius is infinity where nothing is proved."""
    z, exact = equilibrium_point(proof, h.center)
    change = Enclosure(h.center, h.radius) - exact
    k = Enclosure.exact(proof.root)
    norm = _norm((change @ k).magnitude)
    return _around(proof, z, change @ proof.square, norm)


def cut_by_images(ctx: Context, weight: Tensor, h: Box, z: Box, images: int) -> Box:
    """Return a box [B, N] that contains every equilibrium in the box z, for all h in a box: z cut by its images.

    Where z_i = relu(W_ii z_i + g_i) and W_ii < 1, also z_i = relu(g_i / (1 - W_ii)). So strong monotonicity, by which
    every W_ii is below 1, gives images even where rho(|W|) is above 1. They need not contract.
    """
    diagonal = weight.diagonal()
    others, divisor, terms = weight - diagonal.diag_embed(), 1 - diagonal, len(weight) + 1
    rounding, tiny = (8 * torch.finfo(z.center.dtype).eps, torch.finfo(z.center.dtype).tiny) if ctx.sound else (0, 0)
    of_h = widen_terms(ctx, h.center, h.radius, terms)
    low, high = outward_ends(z) if ctx.sound else (z.lower, z.upper)
    for _ in range(images):
        box = between(ctx, low, high, None)
        middle = box.center @ others.mT + h.center
        reach = widen_sum(ctx, widen_terms(ctx, box.center, box.radius, terms) @ others.abs().mT + of_h, terms)
        bounds_it = middle.isfinite()  # a sum that overflows bounds nothing
        middle, reach = torch.where(bounds_it, middle, 0), torch.where(bounds_it, reach, torch.inf)
        image_low = torch.relu(middle - reach) / divisor * (1 - rounding) - tiny
        image_high = torch.relu(middle + reach) / divisor * (1 + rounding) + tiny
        both = torch.maximum(low, image_low), torch.minimum(high, image_high)
        overlap = both[0] <= both[1]  # in training z has four digits, so that boxes of tiny radius may miss it
        low, high = torch.where(overlap, both[0], low), torch.where(overlap, both[1], high)
    return between(ctx, low, high, None).box


def first_box(proof: Monotonicity, inject: AffineMap, x: Box) -> Box:
    """Return a box [N] of the equilibria of all h = inject(x), x [d] in a box."""
    middle = inject.range_over(Box(x.center, torch.zeros_like(x.center)))
    z, exact = equilibrium_point(proof, middle.value[None])
    change = middle - Enclosure(exact.value[0], exact.error[0])
    change = Enclosure(change.value, rounded_up(change.error + inject.error, 2))  # the error may differ between inputs
    k = Enclosure.exact(proof.root)
    spread = (k.mT @ Enclosure.exact(inject.matrix)).scaled(x.radius)
    at_center = k.mT @ Enclosure(change.value[:, None], change.error[:, None])
    norm = _largest_norm(spread) + _norm(at_center.magnitude[:, 0])
    shift, reach = k @ at_center, sum_rounded_up((k @ spread).magnitude)
    linear = Enclosure(shift.value[:, 0], rounded_up(shift.error[:, 0] + reach, 2))
    return _around(proof, z[0], linear, norm)


def _around(proof: Monotonicity, z: Tensor, linear: Enclosure, norm: Tensor) -> Box:
    """Return z + K v / 2 +- |K_i| |v| / 2 where linear = (1 - delta) K v and (1 - delta) |v| <= norm."""
    reach = _norm(proof.root.abs()) * norm[..., None]
    share = 1 / (2 * (1 - proof.delta)) * (1 + 1e-15)
    center = linear.value / 2
    radius = rounded_up((linear.error + reach) * share + linear.value.abs() * (share - 0.5 + 1e-15), 8)
    box = Enclosure.exact(z) + Enclosure(center, radius)
    low, high = outward_ends(Box(box.value, box.error))
    low = low.clamp(min=0)
    high = torch.maximum(high, low)
    radius = rounded_up((high - low) / 2, 2) + 2 * torch.finfo(low.dtype).eps * (low + high)
    is_proved = radius.isfinite() & (proof.delta < 1)
    return Box(torch.where(is_proved, (low + high) / 2, 0.0), torch.where(is_proved, radius, torch.inf))


def _largest_norm(matrix: Enclosure) -> Tensor:
    """Return at least the largest norm of M t over t in [-1, 1]^d.

    For any weights s > 0 of the inputs, |M t|^2 <= the largest eigenvalue of M diag(1 / s) M^T, times the sum of s.
    """
    rows = _norm(sum_rounded_up(matrix.magnitude))
    weights = _input_weights(matrix.value)
    root = weights.rsqrt()
    scaled = matrix.scaled(root)
    # root is rounded, so its own square counts
    total = float(sum_rounded_up(rounded_up(1 / (root * root), 8)))
    square = torch.tensor(largest_eigenvalue(scaled @ scaled.mT) * total, dtype=rows.dtype, device=rows.device)
    return torch.minimum(rows, rounded_up(square, 2).sqrt() * (1 + 1e-15)).nan_to_num(nan=torch.inf)


def _input_weights(matrix: Tensor) -> Tensor:
    """Return weights [d] for which the bound of `_largest_norm` is small, by subspace iteration. No proof."""
    matrix = matrix.nan_to_num()
    squares = (matrix * matrix).sum(0)
    floor = squares.max() * 1e-12 + 1e-300
    weights = best = torch.ones_like(squares)
    lowest = torch.inf
    vectors = torch.linalg.qr(matrix[:, squares.argsort(descending=True)[:_VECTORS]]).Q
    for step in range(_WEIGHT_STEPS):
        check()
        scaled = matrix / weights.sqrt()
        for _ in range(2 if step else _FIRST_ROUNDS):
            vectors = torch.linalg.qr(scaled @ (scaled.mT @ vectors)).Q
        image = scaled.mT @ vectors
        values, turn = torch.linalg.eigh((image.mT @ image).nan_to_num())
        vectors = vectors @ turn
        if (value := float(values[-1] * weights.sum())) < lowest:
            lowest, best = value, weights
        closeness = ((values[-_LEADING:] / values[-1].clamp(min=1e-300) - 1) * 10).exp()
        response = (((vectors[:, -_LEADING:] * closeness).mT @ matrix) ** 2).sum(0).add(floor).sqrt()
        weights = weights**0.7 * (response / response.mean() * weights.mean()) ** 0.3
    return best


def _norm(rows: Tensor) -> Tensor:
    """Return at least the Euclidean norms of rows [..., N] of numbers of at least 0."""
    return rounded_up(sum_rounded_up(rows * rows).sqrt(), 2)
