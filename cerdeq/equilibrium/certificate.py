"""Proofs about equilibria: that there is exactly one, and boxes that contain it, whatever the solver returned.

Let v > 0 with s = v - |W| v > 0. Then rho(|W|) < 1 (Collatz-Wielandt), z = relu(W z + h) has exactly one solution,
and for the interval map F of a box of h:
    F(B) inside B                =>  B contains the equilibrium of every h in the box (Brouwer, then uniqueness);
    B = (c, r) a guess, d the excess of F(B) over B, t = max_i d_i / s_i  =>  F(c, r + t v) inside (c, r + t v).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cerdeq.boxes import Box, outward_ends, smaller_box
from cerdeq.deadline import check
from cerdeq.equilibrium.recurrence import apply_lifted, apply_weight, per_example
from cerdeq.equilibrium.solver import AndersonSteps, near_equilibrium, solve_to_tolerance
from cerdeq.gpu_readings import is_host_reading
from cerdeq.operators.interval import Context, widen_sum, widen_terms
from cerdeq.operators.relu import relu_box
from cerdeq.precision import counted_rounding, uncounted_rounding

_POWER_ITERATIONS = 500
_SMALL = 256  # channels up to which thousands of little products take longer to launch on a GPU than to do on a CPU
_FLOORS, _AS_GOOD = (1e-6, 1e-12, 1e-18), 1e-5
_INTERVAL_TOLERANCE = 1e-6
_INTERVAL_LIMIT = 1000
_INTERVAL_STEPS = AndersonSteps  # radii go by |W|, so rho(|W|) counts: Picard is several times slower near 1
_FINAL_STEPS, _MOST_FINAL_STEPS = 2, 500
_POINTS = 1e-9  # largest radius of a point, in units of its centre


class NotContractiveError(ValueError):
    """rho(|W|) < 1 is not proved, so the equilibrium has no bounds."""


@dataclass(frozen=True)
class Contraction:
    """Proof that rho(|W|) <= rate: (|W| v)_i <= rate v_i for every channel i. v: [C], positive, float64."""

    v: Tensor
    rate: float


def channel_matrix(weight: Tensor) -> Tensor:
    """Return the sum of |W| over the kernel, [C, C].

    With v constant over pixels (A v)_i bounds |W| v at every pixel of channel i: zero padding only lowers it.
    """
    return weight.abs().flatten(2).sum(2) if weight.dim() > 2 else weight.abs()


def contraction(weight: Tensor) -> Contraction:
    """Return about the smallest rate that power iteration proves, in float64 with rounding counted outwards.

    The rate may be 1 or more. Of several v that prove as much it is the evenest: boxes are widened by multiples of it.
    """
    weight = weight.detach().double()
    matrix, terms = channel_matrix(weight), weight[0].numel()
    if len(matrix) <= _SMALL:
        matrix = matrix.cpu()
    proofs = []
    for floor in _FLOORS:
        v = _perron_vector(matrix, floor)
        proofs.append(Contraction(v, float((_product_rounded_up(matrix, v, terms) / v).max())))
    best_rate = min(proof.rate for proof in proofs)
    evenest = next((proof for proof in proofs if proof.rate <= best_rate * (1 + _AS_GOOD)), proofs[0])
    return Contraction(evenest.v.to(weight.device), evenest.rate)


def _perron_vector(matrix: Tensor, floor: float) -> Tensor:
    """Return about the right Perron vector of a non-negative matrix, no entry far below `floor` times the largest.

    A smaller floor allows matrices whose rows and columns have very different sizes. But entries that are almost 0 then
    grow more slowly.
    """
    v = torch.ones(len(matrix), dtype=torch.float64, device=matrix.device)
    for _ in range(_POWER_ITERATIONS):
        check()
        product = matrix @ v
        rate = (product / v).max() + 1e-300
        v = product + rate * (0.1 * v + floor * v.mean())  # a multiple of v, so that periodic matrices converge too
        v = v / v.max()
    return v


def _product_rounded_up(matrix: Tensor, v: Tensor, terms: int) -> Tensor:
    """Return at least A v, where A's entries are themselves sums, `terms` products in all, and one rounding more."""
    limits = torch.finfo(torch.float64)
    return (matrix @ v) * (1 + (terms + 8) * limits.eps) + (terms + 8) * limits.tiny


def interval_step(weight: Tensor, h: Box, z: Box) -> Box:
    """Return the box of relu(W z + h), rounded outwards: one application of the interval map F."""
    preactivation = preactivation_box(weight, h, z)
    return Box(*relu_box(Context(sound=True), preactivation.center, preactivation.radius))


def preactivation_box(weight: Tensor, h: Box, z: Box) -> Box:
    """Return the box of W z + h, rounded outwards."""
    ctx = Context(sound=True)
    terms = weight[0].numel() + 1
    center = apply_weight(weight, z.center) + h.center
    radius = apply_weight(weight.abs(), widen_terms(ctx, z.center, z.radius, terms))
    return Box(center, widen_sum(ctx, radius + widen_terms(ctx, h.center, h.radius, terms), terms))


def reachable_preactivation(weight: Tensor, h: Box, z: Box) -> Box:
    """Return `preactivation_box` cut by z's box: z = relu(p) makes p <= z, and p = z where z > 0."""
    p = preactivation_box(weight, h, z)
    (low, high), (z_low, z_high) = outward_ends(p), outward_ends(z)
    return smaller_box(p, torch.where(z_low > 0, torch.maximum(low, z_low), low), torch.minimum(high, z_high))


def verify_inclusion(weight: Tensor, h: Box, z: Box, v: Tensor) -> Tensor:
    """Return whether `z` is proved to contain the equilibrium of every h in the box, per example: bool [B].

    weight: [C, C, k, k] or [N, N]; h, z: boxes [B, C, H, W] or [B, N]; v: [C] or [N]. True only where |W| v < v and
    F(z) lies inside z, both in float64 with rounding counted outwards. Anything not finite is False. Raises ValueError
    for boxes of another shape.
    """
    if not weight.dim() == h.center.dim() == z.center.dim():
        raise ValueError("boxes must be [B, C, H, W] for a convolution, [B, N] for a matrix")
    weight, h, z, v = weight.double(), h.double(), z.double(), v.double()
    unique = (v > 0).all() & (_product_rounded_up(channel_matrix(weight), v, weight[0].numel()) < v).all()
    inside = _excess(interval_step(weight, h, z), z) <= 0
    proper = (h.radius >= 0) & (z.radius >= 0) & torch.isfinite(z.center) & torch.isfinite(z.radius)
    return (inside & proper).flatten(1).all(1) & unique


def intersect_with_image(weight: Tensor, h: Box, z: Box) -> Box:
    """Return a proved box z intersected with F(z) a few times; the proof stays, since the equilibrium is in both."""
    for _ in range(_FINAL_STEPS):
        z = smaller_box(z, *outward_ends(interval_step(weight, h, z)))
    return z


def closed_form_box(weight: Tensor, h: Box, proof: Contraction) -> Box:
    """Return [0, t v] with t = max_i relu(h_u)_i / s_i: it contains every equilibrium, without any iteration."""
    v = proof.v.to(h.center).view(1, -1, *[1] * (h.center.dim() - 2))
    upper = torch.relu(h.center + h.radius)
    scale = (upper / (v * (1 - proof.rate))).flatten(1).amax(1) * (1 + 1e-6) + 1e-280
    half = (per_example(scale, h.center) * v / 2).expand_as(h.center)
    return Box(half, half.clone())


@torch.no_grad()
def verified_box(weight: Tensor, h: Box, proof: Contraction | None = None) -> Box:
    """Return a box that is proved to contain the equilibrium of every h in the box `h`, [B, ...], float64, no gradient.

    The interval equilibrium is solved fast in float32 and widened by a multiple of v, so that float64 can check its
    inclusion. Then F maps it again, which undoes the widening and keeps the proof. If the check fails, the closed-form
    box is tried; an example without any proved box gets radius infinity.

    proof: `contraction` of this weight, if it was computed before. Raises NotContractiveError if there is no proof of
    rho(|W|) < 1.
    """
    with counted_rounding(h.center.device.type):
        proof = contraction(weight) if proof is None else proof
        if not proof.rate < 1:
            raise NotContractiveError(f"rho(|W|) < 1 is not proved: the bound is {proof.rate:.6f}")
        weight, h = weight.double(), h.double()
        z = _widen(weight, h, _guess(weight, h), proof)
        proved = verify_inclusion(weight, h, z, proof.v)
        if not bool(proved.all()):
            z = _select(proved, z, closed_form_box(weight, h, proof))
            proved = verify_inclusion(weight, h, z, proof.v)
        z = _apply_map(weight, h, z, proof)
        z = _widen(weight, h, z, proof)  # by rounding errors, so that the check accepts the returned box
        return Box(z.center, torch.where(per_example(proved, z.radius), z.radius, torch.inf))


def _guess(weight: Tensor, h: Box) -> Box:
    """Return about the interval equilibrium of h: to float32's accuracy, to float64's if all h are points."""
    points = h.radius.flatten(1).sum(1) <= _POINTS * h.center.abs().flatten(1).sum(1)
    if bool(points.all()):
        return Box(near_equilibrium(weight, h.center)[0], torch.zeros_like(h.radius))
    return interval_equilibrium(weight, h)


def _apply_map(weight: Tensor, h: Box, z: Box, proof: Contraction) -> Box:
    """Return a proved box z mapped through F twice, and again as long as it shrinks as fast as errors of the guess.

    Only boxes as small as those errors, such as those of points, are mapped often, down to 1e-10 of their centre. Each
    example stops by itself.
    """
    shrinking = torch.ones(len(z.center), dtype=torch.bool, device=z.center.device)
    for step in range(1, _MOST_FINAL_STEPS + 1):
        following = interval_step(weight, h, z)
        before, after = (box.radius.flatten(1).sum(1) for box in (z, following))
        z = _select(shrinking, following, z)
        large = after > 1e-10 * z.center.abs().flatten(1).sum(1)
        shrinking = shrinking & (large & (after < before * (1 + proof.rate) / 2) | (step < _FINAL_STEPS))
        if step >= _FINAL_STEPS and is_host_reading(step, shrinking.device) and not bool(shrinking.any()):
            break
    return z


def interval_equilibrium(weight: Tensor, h: Box) -> Box:
    """Return the interval equilibrium of h [B, ...] to float32 accuracy, in float64: a guess, not a proof."""
    small, ends = weight.float(), torch.cat([h.center, h.radius], dim=1).float()
    ctx = Context(sound=False)

    def step(state: Tensor, ends: Tensor) -> Tensor:
        (c, r), (h_c, h_r) = state.chunk(2, dim=1), ends.chunk(2, dim=1)
        # The solver may extrapolate to a negative radius.
        return torch.cat(relu_box(ctx, *apply_lifted(small, (c, torch.relu(r)), (h_c, h_r))), dim=1)

    with uncounted_rounding():
        solution = solve_to_tolerance(
            step, torch.zeros_like(ends), ends, _INTERVAL_TOLERANCE, _INTERVAL_LIMIT, _INTERVAL_STEPS
        )
    c, r = solution.value.double().chunk(2, dim=1)
    return Box(c, r)


def _widen(weight: Tensor, h: Box, z: Box, proof: Contraction) -> Box:
    """Return z, widened so that it includes F(z) with a reserve for rounding; unchanged if it does already.

    With e the excess of F(z) over z, each channel's largest, and A the channel matrix, u = (I - A)^-1 e is enough: F of
    the wider box exceeds z by at most e + A u = u. It is at most the multiple of v that would be enough. The reserve of
    a channel is proportional to what it sums up, and a little along v for errors of the linear system.
    """
    matrix = channel_matrix(weight)

    def largest(values: Tensor) -> Tensor:
        return values.flatten(2).amax(2) if values.dim() > 2 else values

    excess = largest(torch.relu(_excess(interval_step(weight, h, z), z)))
    size = largest(z.center.abs() + z.radius)
    scale = size + size @ matrix.T + largest(h.center.abs() + h.radius)
    along = (excess / proof.v).amax(1, keepdim=True) * proof.v
    needed = excess * (1 + 1e-6) + 1e-9 * along + 1e-12 * scale
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    solved = torch.linalg.solve_ex(identity - matrix, needed.T).result.T
    widening = solved.clamp(min=0) * (excess.amax(1, keepdim=True) > 0)
    return Box(z.center, z.radius + widening.view(*widening.shape, *[1] * (z.center.dim() - 2)))


def _excess(inner: Box, outer: Box) -> Tensor:
    """Return how far `inner`, never negative, exceeds `outer` at either end, rounded up; at most 0 if it is inside."""
    shift = inner.center - outer.center
    radius = inner.radius + 4 * torch.finfo(shift.dtype).eps * (shift.abs() + inner.radius)
    above, below = shift + radius - outer.radius, radius - shift - outer.radius
    return torch.where(outer.center <= outer.radius, above, torch.maximum(above, below))


def _select(choose: Tensor, a: Box, b: Box) -> Box:
    mask = per_example(choose, a.center)
    return Box(torch.where(mask, a.center, b.center), torch.where(mask, a.radius, b.radius))
