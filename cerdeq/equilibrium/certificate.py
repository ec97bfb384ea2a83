"""Proofs about equilibria: that there is exactly one, and boxes that contain it, whatever the solver did.

Let v > 0 with s = v - |W| v > 0. Then rho(|W|) < 1 (Collatz-Wielandt), z = relu(W z + h) has exactly one solution,
and for the interval map F of a box of h:
    F(B) inside B                =>  B contains the equilibrium of every h in the box (Brouwer, then uniqueness);
    B = (c, r) a guess, d the excess of F(B) over B, t = max_i d_i / s_i  =>  F(c, r + t v) inside (c, r + t v).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cerdeq.bounds.host import is_read
from cerdeq.bounds.interval import Context, absorb, relu_box, settle
from cerdeq.bounds.precision import counted_rounding, uncounted_rounding
from cerdeq.boxes import Box, narrowed, outward_ends
from cerdeq.equilibrium.recurrence import apply_lifted, apply_weight, per_channel
from cerdeq.equilibrium.refine import near_equilibrium
from cerdeq.equilibrium.solver import solve

_POWER_ITERATIONS = 500
_SMALL = 256  # channels up to which thousands of little products take longer to launch on a GPU than to do on a CPU
_FLOORS, _AS_GOOD = (1e-6, 1e-12, 1e-18), 1e-5
_SOLVER_TOLERANCE = 1e-6
_SOLVER_LIMIT = 1000
_SOLVER = "anderson"  # radii go by |W|, so rho(|W|) counts: Picard is several times slower near 1
_FINAL_STEPS, _MOST_FINAL_STEPS = 2, 500
_POINTS = 1e-9  # a box's radius in units of its centre, up to which it is taken for a point


class NotContractiveError(ValueError):
    """rho(|W|) < 1 is not proved, so the equilibrium has no bounds."""


@dataclass(frozen=True)
class Contraction:
    """Proof that rho(|W|) <= rate: (|W| v)_i <= rate v_i for every channel i. v: [C], positive, float64."""

    v: Tensor
    rate: float


def channel_matrix(weight: Tensor) -> Tensor:
    """Sum of |W| over the kernel, [C, C].

    With v constant over pixels (A v)_i bounds |W| v at every pixel of channel i: zero padding only lowers it.
    """
    return weight.abs().flatten(2).sum(2) if weight.dim() > 2 else weight.abs()


def contraction(weight: Tensor) -> Contraction:
    """About the least rate that power iteration proves, in float64 with rounding counted outwards. It may be 1 or more.

    Of several v that prove as much, the evenest: boxes are widened by multiples of it.
    """
    weight = weight.detach().double()
    matrix, terms = channel_matrix(weight), weight[0].numel()
    if len(matrix) <= _SMALL:
        matrix = matrix.cpu()
    proofs = [_proved(matrix, _perron_vector(matrix, floor), terms) for floor in _FLOORS]
    least = min(proof.rate for proof in proofs)
    chosen = next((proof for proof in proofs if proof.rate <= least * (1 + _AS_GOOD)), proofs[0])
    return Contraction(chosen.v.to(weight.device), chosen.rate)


def _perron_vector(matrix: Tensor, floor: float) -> Tensor:
    """About the right Perron vector of a non-negative matrix, no entry of it far below `floor` times the largest: the
    smaller the floor, the worse may rows and columns be scaled, and the slower do entries settle that are almost 0."""
    v = torch.ones(len(matrix), dtype=torch.float64, device=matrix.device)
    for _ in range(_POWER_ITERATIONS):
        product = matrix @ v
        rate = (product / v).max() + 1e-300
        v = product + rate * (0.1 * v + floor * v.mean())  # a multiple of v, so that periodic matrices converge too
        v = v / v.max()
    return v


def _proved(matrix: Tensor, v: Tensor, terms: int) -> Contraction:
    return Contraction(v, float((_product_rounded_up(matrix, v, terms) / v).max()) * (1 + 1e-15))


def _product_rounded_up(matrix: Tensor, v: Tensor, terms: int) -> Tensor:
    """At least A v, where A's entries are themselves sums, `terms` products in all."""
    limits = torch.finfo(torch.float64)
    return (matrix @ v) * (1 + (terms + 8) * limits.eps) + (terms + 8) * limits.tiny


def interval_step(weight: Tensor, h: Box, z: Box) -> Box:
    """One outward-rounded application of the interval map F: the box of relu(W z + h)."""
    preactivation = preactivation_box(weight, h, z)
    return Box(*relu_box(Context(sound=True), preactivation.center, preactivation.radius))


def preactivation_box(weight: Tensor, h: Box, z: Box) -> Box:
    """The box of W z + h, rounded outwards."""
    ctx = Context(sound=True)
    terms = weight[0].numel() + 1
    center = apply_weight(weight, z.center) + h.center
    radius = apply_weight(weight.abs(), absorb(ctx, z.center, z.radius, terms))
    return Box(center, settle(ctx, radius + absorb(ctx, h.center, h.radius, terms), terms))


def reachable_preactivation(weight: Tensor, h: Box, z: Box) -> Box:
    """`preactivation_box`, smaller where z's box says so: z = relu(p) makes p <= z, where z > 0 equal to it."""
    p = preactivation_box(weight, h, z)
    (low, high), (least, most) = outward_ends(p), outward_ends(z)
    low, high = torch.where(least > 0, torch.maximum(low, least), low), torch.minimum(high, most)
    return narrowed(p, low, high)


def verify_inclusion(weight: Tensor, h: Box, z: Box, v: Tensor) -> Tensor:
    """Whether `z` is proved to contain the equilibrium of every h in the box, per example: bool [B].

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


def contracted(weight: Tensor, h: Box, z: Box) -> Box:
    """A proved box z, intersected with F(z) a few times: it keeps the proof (the equilibrium is in both)."""
    for _ in range(_FINAL_STEPS):
        z = narrowed(z, *outward_ends(interval_step(weight, h, z)))
    return z


def closed_form_box(weight: Tensor, h: Box, proof: Contraction) -> Box:
    """[0, t v] with t = max_i relu(h_u)_i / s_i: contains every equilibrium, without any iteration."""
    v = per_channel(proof.v, h.center)
    upper = torch.relu(h.center + h.radius)
    reach = (upper / (v * (1 - proof.rate))).flatten(1).amax(1) * (1 + 1e-6) + 1e-280
    half = (_per_example(reach, h.center) * v / 2).expand_as(h.center)
    return Box(half, half.clone())


@torch.no_grad()
def verified_box(weight: Tensor, h: Box, proof: Contraction | None = None) -> Box:
    """A box that is proved to contain the equilibrium of every h in the box `h`, [B, ...], float64.

    The interval equilibrium is solved fast in float32, widened by a multiple of v until its inclusion is checked in
    float64, then mapped through F again, which keeps the proof and undoes the widening. Where the check fails
    the closed-form box is tried; an example without any proved box gets radius infinity. Without gradient.
    proof: `contraction` of this weight, where it is known. Raises NotContractiveError where rho(|W|) < 1 has no proof.
    """
    with counted_rounding(h.center.device.type):
        return _verified_box(weight, h, contraction(weight) if proof is None else proof)


def _verified_box(weight: Tensor, h: Box, proof: Contraction) -> Box:
    if not proof.rate < 1:
        raise NotContractiveError(f"rho(|W|) < 1 is not proved: the bound is {proof.rate:.6f}")
    weight, h = weight.double(), h.double()
    z = _widened(weight, h, _guess(weight, h), proof)
    proved = verify_inclusion(weight, h, z, proof.v)
    if not bool(proved.all()):
        z = _select(proved, z, closed_form_box(weight, h, proof))
        proved = verify_inclusion(weight, h, z, proof.v)
    z = _mapped(weight, h, z, proof)
    z = _widened(weight, h, z, proof)  # by rounding errors, so that the check accepts the box that is handed out
    return Box(z.center, torch.where(_per_example(proved, z.radius), z.radius, torch.inf))


def _guess(weight: Tensor, h: Box) -> Box:
    """The interval equilibrium of h, roughly: to float32's accuracy, to float64's where h has all but no radius."""
    points = h.radius.flatten(1).sum(1) <= _POINTS * h.center.abs().flatten(1).sum(1)
    if bool(points.all()):
        return Box(near_equilibrium(weight, h.center), torch.zeros_like(h.radius))
    return interval_equilibrium(weight, h)


def _mapped(weight: Tensor, h: Box, z: Box, proof: Contraction) -> Box:
    """A proved box z, mapped through F twice, and on as long as that shrinks it as fast as errors of the guess do.

    Only boxes as small as those errors, of points say, are mapped often, down to 1e-10 of their centre. Each example
    stops by itself.
    """
    shrinking = torch.ones(len(z.center), dtype=torch.bool, device=z.center.device)
    for step in range(1, _MOST_FINAL_STEPS + 1):
        following = interval_step(weight, h, z)
        before, after = (box.radius.flatten(1).sum(1) for box in (z, following))
        z = _select(shrinking, following, z)
        large = after > 1e-10 * z.center.abs().flatten(1).sum(1)
        shrinking = shrinking & (large & (after < before * (1 + proof.rate) / 2) | (step < _FINAL_STEPS))
        if step >= _FINAL_STEPS and is_read(step, shrinking.device) and not bool(shrinking.any()):
            break
    return z


def interval_equilibrium(weight: Tensor, h: Box) -> Box:
    """The interval equilibrium of h [B, ...] to float32 accuracy, in float64: a guess, nothing proved."""
    small, ends = weight.float(), torch.cat([h.center, h.radius], dim=1).float()
    ctx = Context(sound=False)

    def step(state: Tensor, ends: Tensor) -> Tensor:
        (c, r), (h_c, h_r) = state.chunk(2, dim=1), ends.chunk(2, dim=1)
        # The solver may extrapolate to a negative radius.
        return torch.cat(relu_box(ctx, *apply_lifted(small, (c, torch.relu(r)), (h_c, h_r))), dim=1)

    with uncounted_rounding():
        solution = solve(step, torch.zeros_like(ends), ends, _SOLVER_TOLERANCE, _SOLVER_LIMIT, _SOLVER)
    c, r = solution.value.double().chunk(2, dim=1)
    return Box(c, r)


def _widened(weight: Tensor, h: Box, z: Box, proof: Contraction) -> Box:
    """z, wider so that it includes F(z), with room for rounding; unchanged where it does.

    With e the excess of F(z) over z, each channel's largest, and A the channel matrix, u = (I - A)^-1 e is enough: F of
    the wider box sticks out of z by at most e + A u = u. It is at most the multiple of v that would do. The room is for
    each channel what it sums up, and a little along v for errors of the linear system.
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
    reach = solved.clamp(min=0) * (excess.amax(1, keepdim=True) > 0)
    return Box(z.center, z.radius + reach.view(*reach.shape, *[1] * (z.center.dim() - 2)))


def _excess(inner: Box, outer: Box) -> Tensor:
    """How far `inner`, never negative, sticks out of `outer` at either end, rounded up: not positive inside."""
    shift = inner.center - outer.center
    reach = inner.radius + 4 * torch.finfo(shift.dtype).eps * (shift.abs() + inner.radius)
    above, below = shift + reach - outer.radius, reach - shift - outer.radius
    return torch.where(outer.center <= outer.radius, above, torch.maximum(above, below))


def _select(choose: Tensor, a: Box, b: Box) -> Box:
    mask = _per_example(choose, a.center)
    return Box(torch.where(mask, a.center, b.center), torch.where(mask, a.radius, b.radius))


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
