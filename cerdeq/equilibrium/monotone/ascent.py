"""Search for multipliers by gradient ascent in float32, for many leaves and all their rows at once. Nothing is proved.

The bounds of bounds.py are concave in the multipliers. Adam ascends all rows of all leaves together, and the boxes
shrink between its steps: bounds of one unit are tighter over tighter boxes of the others.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cerdeq.deadline import check
from cerdeq.equilibrium.monotone.bounds import EquilibriumBounds, Leaf

_RATE, _LAST_RATE = 0.005, 0.02  # of Adam, of multipliers in units of 1 / (1 - w); the last in units of the first
_MEAN, _SQUARE = 0.9, 0.99  # decay of Adam's averages
_EVERY = 5  # steps between two updates of the boxes
_BRANCH_STEPS, _BRANCH_RATE = 15, 0.01


@dataclass(frozen=True)
class Multipliers:
    """Multipliers of L leaves for R = 2 N + 1 rows: all units' lower ends, their upper ends, and the assumed row.

    scaled: (1 - w) a, [L, R, N]. betas: [L, R].
    """

    scaled: Tensor
    betas: Tensor

    @staticmethod
    def joined(parts: list["Multipliers"]) -> "Multipliers":
        """Return those of the leaves of all parts."""
        return Multipliers(torch.cat([part.scaled for part in parts]), torch.cat([part.betas for part in parts]))

    def of(self, leaves: Tensor) -> "Multipliers":
        """Return those of some of the leaves."""
        return Multipliers(self.scaled[leaves], self.betas[leaves])


class MultiplierAscent:
    """Gradient ascent on the multipliers of one layer, in float32; every unit is divided by 1 - w.

    recurrence: V / (1 - w), [N, N]. spread: U times the inputs' radii / (1 - w), [N, d], of the inputs that have a
    radius. middle: h at the box's centre / (1 - w), [N]. directions: e of every row, [R, N].
    """

    def __init__(self, layer: EquilibriumBounds):
        self.count = layer.count
        divisor = layer.divisor[:, None]
        self.recurrence = (layer.off_diagonal / divisor).float()
        moves = layer.x.radius > 0
        self.spread = (layer.inject.matrix * layer.x.radius / divisor)[:, moves].float()
        self.middle = ((layer.inject.matrix @ layer.x.center + layer.inject.offset) / layer.divisor).float()
        identity = torch.eye(self.count, device=self.middle.device)
        self.directions = torch.cat([identity, -identity, torch.zeros_like(identity[:1])])

    def start(self, leaves: int) -> Multipliers:
        """Return first multipliers: those of intervals."""
        rows = self.directions.expand(leaves, -1, -1).clone()
        betas = torch.zeros(leaves, len(self.directions), device=rows.device)
        betas[:, -1] = 1
        return Multipliers(rows, betas)

    def ascend(self, multipliers: Multipliers, leaves: Leaf, steps: int, units: Tensor) -> Multipliers:
        """Return better multipliers for L leaves. units: [L, U], those whose rows ascend."""
        leaf = torch.arange(len(leaves.low), device=units.device)[:, None]
        last = torch.full_like(leaf, 2 * self.count)
        numbers = torch.cat([units, units + self.count, last], dim=1)
        e, a, beta = self.directions[numbers], multipliers.scaled[leaf, numbers], multipliers.betas[leaf, numbers]
        free = torch.ones_like(beta)
        free[:, -1] = 0  # the assumed row itself has beta 1
        leaves = _in_float32(leaves)
        scale = leaves.row.abs().amax(1, keepdim=True) + 1e-30  # betas are ascended in units of 1 / scale
        moments = [torch.zeros_like(value) for value in (a, a, beta, beta)]
        for step in range(steps):
            check()
            value, gradient, of_beta = self._value(a, beta, e, leaves)
            if step % _EVERY == 0:
                low = leaves.low.scatter_reduce(1, units, value[:, : units.shape[1]], "amax")
                high = leaves.high.scatter_reduce(1, units, -value[:, units.shape[1] : -1], "amin")
                leaves = replace(leaves, low=low, high=high)
            rate = _RATE * (1 - step / steps + _LAST_RATE)
            a = a + rate * _adam(moments[:2], gradient, step)
            beta = (beta + rate / scale * free * _adam(moments[2:], of_beta / scale, step)).clamp(min=0)
        scaled, betas = multipliers.scaled.clone(), multipliers.betas.clone()
        scaled[leaf, numbers], betas[leaf, numbers] = a, beta
        return Multipliers(scaled, betas)

    def _value(self, a: Tensor, beta: Tensor, e: Tensor, leaves: Leaf) -> tuple[Tensor, Tensor, Tensor]:
        """Return bounds [L, R] with their supergradients in the multipliers and in beta."""
        low, high, row, offset = (tensor[:, None] for tensor in vars(leaves).values())
        of_z, of_q, of_x = beta[..., None] * row + a @ self.recurrence, e - a, a @ self.spread
        z_low, z_high = low.clamp(min=0), high.clamp(min=0)
        at_low, at_high = of_z * z_low + of_q * low, of_z * z_high + of_q * high
        upper, least = at_high < at_low, torch.minimum(at_low, at_high)
        at_zero = leaves.is_unstable[:, None] & (least > 0)
        z = torch.where(upper, z_high, z_low).masked_fill(at_zero, 0)
        q = torch.where(upper, high, low).masked_fill(at_zero, 0)
        value = least.masked_fill(at_zero, 0).sum(2) + a @ self.middle - of_x.abs().sum(2) + beta * offset
        gradient = z @ self.recurrence.mT - q + self.middle - of_x.sign() @ self.spread.mT
        return value, gradient, (z * row).sum(2) + offset

    def best_split(self, a: Tensor, leaf: Leaf) -> int:
        """Return the unit of one leaf whose two halves have the best bounds of the assumed row.

        a: [N], the row's multipliers, from which both halves of each unit ascend a few steps.
        """
        units = leaf.is_unstable.nonzero()[:, 0]
        count = torch.arange(len(units), device=units.device)
        halves = Leaf.stacked([_in_float32(leaf)] * (2 * len(units)))
        halves.low[count, units], halves.high[count + len(units), units] = 0, 0
        a = a.repeat(2 * len(units), 1)[:, None]
        beta, best = torch.ones_like(a[..., 0]), torch.full_like(a[..., 0], -torch.inf)
        moments = [torch.zeros_like(a), torch.zeros_like(a)]
        for step in range(_BRANCH_STEPS):
            value, gradient, _ = self._value(a, beta, torch.zeros_like(a), halves)
            best = torch.maximum(best, value)
            a = a + _BRANCH_RATE * (1 - step / _BRANCH_STEPS) * _adam(moments, gradient, step)
        active, inactive = best[: len(units), 0], best[len(units) :, 0]
        floor = torch.minimum(active, inactive).min() - 1e-3 * leaf.offset.abs().float() - 1e-30
        return int(units[((active - floor) * (inactive - floor)).argmax()])


def _in_float32(leaves: Leaf) -> Leaf:
    return Leaf(*(tensor.float() for tensor in vars(leaves).values()))


def _adam(moments: list[Tensor], gradient: Tensor, step: int) -> Tensor:
    """Return Adam's direction, and update its two averages in place.

    It is not alpha-CROWN's, which rounds averages in another way: that moves the results here in their third digit.
    """
    mean, square = moments
    mean.mul_(_MEAN).add_(gradient, alpha=1 - _MEAN)
    square.mul_(_SQUARE).addcmul_(gradient, gradient, value=1 - _SQUARE)
    size = (square / (1 - _SQUARE ** (step + 1))).sqrt_().add_(1e-30)
    return mean / (1 - _MEAN ** (step + 1)) / size
