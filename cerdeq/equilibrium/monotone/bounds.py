"""Sound bounds of an equilibrium's units and rows from any multipliers.

With w = diag(W) < 1 and q = (W z - w z + h) / (1 - w), the equilibrium is z = relu(q). In a leaf q lies in [low, high].
Let T_i be the (z_i, q_i) with low_i <= q_i <= high_i under the upper line of the ReLU: its corners are
(relu(low_i), low_i), (relu(high_i), high_i) and, if 0 lies between, (0, 0). For all a, and any row c . z + e . q + o,

    c . z + e . q + o  >=  sum_i min over T_i of [(c + V^T a)_i z_i + (e_i - (1 - w_i) a_i) q_i]
                           + min over x of a . (U x + b) + o,

V = W without its diagonal, since a . (V z + h - (1 - w) q) = 0. A leaf may assume that
row . z + offset <= 0, which it tries to refute: then beta (row . z + offset), beta >= 0, may be added to any row.
docs/developers/monotone.md has the proof, and the reasons for the factors of rounding errors.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cerdeq.boxes import Box, outward_ends
from cerdeq.deadline import check
from cerdeq.equilibrium.monotone.enclosure import Enclosure, rounded_up
from cerdeq.equilibrium.monotone.network import EquilibriumNetwork

_EPS, _TINY = torch.finfo(torch.float64).eps, torch.finfo(torch.float64).tiny
_MOST_REPEATS, _MOVED = 10, 0.02  # of one step's multipliers; while the boxes shrink by this share of their widths


@dataclass(frozen=True)
class Leaf:
    """A box of q and the row that is assumed not to be positive, or L of both.

    low, high: [N] or [L, N], the ends of q. row, offset: [N] and [], or [L, N] and [L], of the assumption
    row . z + offset <= 0; zeros if there is none.
    """

    low: Tensor
    high: Tensor
    row: Tensor
    offset: Tensor

    @staticmethod
    def stacked(leaves: list["Leaf"]) -> "Leaf":
        """Return several leaves as one object."""
        return Leaf(*(torch.stack(tensors) for tensors in zip(*(vars(leaf).values() for leaf in leaves), strict=True)))

    @property
    def is_unstable(self) -> Tensor:
        """True for the units whose sign is open."""
        return (self.low < 0) & (self.high > 0)

    @property
    def width(self) -> Tensor:
        """The sum of the widths of all units."""
        return (self.high - self.low).sum(-1)


@dataclass(frozen=True)
class TighteningStep:
    """Multipliers of R rows that tighten a leaf.

    units, signs: int64 [R]. Row r bounds signs[r] * q[units[r]] from below; the assumed row if signs[r] is 0.
    multipliers, scales: [R, N] and [R], their products are (1 - w) a. Rounded ones are float16 and float32. Exact ones,
        of a linear program, are float64 with scales 1.
    betas: [R], of the assumed row.
    """

    units: Tensor
    signs: Tensor
    multipliers: Tensor
    scales: Tensor
    betas: Tensor

    @staticmethod
    def rounded(units: Tensor, signs: Tensor, multipliers: Tensor, betas: Tensor) -> "TighteningStep":
        """Return a step of multipliers [R, N] in another precision: any are sound, so that few digits are stored."""
        scales = multipliers.abs().amax(1).float().clamp(min=1e-30)
        return TighteningStep(units, signs, (multipliers / scales[:, None]).half(), scales, betas.float().clamp(min=0))

    def of(self, rows: Tensor) -> "TighteningStep":
        """Return some of the rows."""
        return TighteningStep(*(tensor[rows] for tensor in vars(self).values()))

    @property
    def is_exact(self) -> bool:
        """True if the multipliers are not rounded to float16."""
        return self.multipliers.dtype == torch.float64


class EquilibriumBounds:
    """What bounds from multipliers need of a network: its matrices, magnitudes, and factors of rounding errors."""

    def __init__(self, network: EquilibriumNetwork):
        weight, x = network.proof.weight, network.box
        self.network, self.count = network, len(weight)
        self.loops = weight.diagonal()
        self.off_diagonal = weight - torch.diag(self.loops)
        self.divisor = 1 - self.loops
        self.inject, self.x = network.inject, x
        self.factor = 4 * (self.count + len(x.center) + 32) * _EPS
        reach = x.center.abs() + x.radius
        self.h_size = rounded_up(self.inject.matrix.abs() @ reach + self.inject.offset.abs(), len(reach) + self.count)
        self.h_error = self.inject.error + 2 * self.factor * self.h_size
        self.underflow = _TINY * 8 * (self.count + len(x.center) + 8) ** 2 * (1 + float(reach.sum()))

    def lower_bounds(self, leaf: Leaf, step: TighteningStep) -> Tensor:
        """Return proved lower bounds [R] of the rows of a step in one leaf, -inf where that fails."""
        low, high, row, offset = leaf.low, leaf.high, leaf.row, leaf.offset
        a = step.multipliers.double() * step.scales.double()[:, None] / self.divisor
        e = torch.zeros_like(a).index_put((torch.arange(len(a), device=a.device), step.units), step.signs.double())
        beta = step.betas.double().clamp(min=0)
        of_z = beta[:, None] * row + a @ self.off_diagonal
        of_q = e - a * self.divisor
        relu_low, relu_high = low.clamp(min=0), high.clamp(min=0)
        at_low, at_high = of_z * relu_low + of_q * low, of_z * relu_high + of_q * high
        least = torch.minimum(at_low, at_high)
        least = torch.where(leaf.is_unstable, least.clamp(max=0), least)
        of_x = a @ self.inject.matrix
        size = a.abs()
        total = (
            least.sum(1) + a @ self.inject.offset + of_x @ self.x.center - of_x.abs() @ self.x.radius + beta * offset
        )
        z_size, q_size = relu_high, torch.maximum(low.abs(), high.abs())
        rounding = (beta[:, None] * row.abs() + size @ self.off_diagonal.abs()) @ z_size
        rounding = rounding + (e.abs() + size * self.divisor) @ q_size + beta * offset.abs()
        lost = self.factor * rounding + size @ self.h_error + 4 * _EPS * total.abs()
        lost = lost + self.underflow * (1 + z_size.sum() + q_size.sum())
        bound = total - lost * (1 + self.factor)
        return torch.where(bound.isfinite(), bound, -torch.inf)

    def first_leaf(self) -> Leaf:
        """Return a proved box of q, by intervals, without an assumption."""
        z = self.network.z
        product = Enclosure.exact(self.off_diagonal) @ Enclosure(z.center[:, None], z.radius[:, None])
        total = Enclosure(product.value[:, 0], product.error[:, 0]) + self.inject.range_over(self.x)
        low, high = (end / self.divisor for end in outward_ends(Box(total.value, total.error)))
        # the divisor and the quotient are each off by eps / 2
        low, high = low - 4 * _EPS * low.abs() - _TINY, high + 4 * _EPS * high.abs() + _TINY
        z_low, z_high = outward_ends(z)
        low = torch.where(z_low > 0, torch.maximum(low, z_low), low)
        return Leaf(low, torch.minimum(high, z_high.clamp(min=0)), torch.zeros_like(low), low.new_zeros(()))

    def apply(self, leaf: Leaf, step: TighteningStep) -> tuple[Leaf, bool, Tensor]:
        """Return the leaf tightened by a step, whether that refutes it, and which rows of the step [R] helped.

        The same multipliers are applied again while they still help: the boxes they use are tighter then.
        """
        useful = torch.zeros(len(step.units), dtype=torch.bool, device=leaf.low.device)
        raises, lowers = step.signs > 0, step.signs < 0
        for _ in range(_MOST_REPEATS):
            check()
            bound = self.lower_bounds(leaf, step)
            refuting = (step.signs == 0) & (bound > 0)
            if bool(refuting.any()):
                return leaf, True, useful | refuting
            before, low, high = leaf.width, leaf.low, leaf.high
            useful = useful | (raises & (bound > low[step.units])) | (lowers & (-bound < high[step.units]))
            low = low.scatter_reduce(0, step.units[raises], bound[raises], "amax")
            high = high.scatter_reduce(0, step.units[lowers], -bound[lowers], "amin")
            leaf = replace(leaf, low=low, high=high)
            if bool((low > high).any()):
                return leaf, True, useful
            if not leaf.width < (1 - _MOVED) * before:
                break
        return leaf, False, useful
