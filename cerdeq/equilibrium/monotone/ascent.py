"""Search for multipliers by gradient ascent in float32, for many leaves and all their rows at once. Nothing is proved.

The bounds of bounds.py are concave in the multipliers. Adam ascends all rows of all leaves together, and the boxes
shrink between its steps: bounds of one unit are tighter over tighter boxes of the others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cerdeq.deadline import check
from cerdeq.equilibrium.monotone.bounds import Layer

_RATE, _LAST_RATE = 0.005, 0.02  # of Adam, of multipliers in units of 1 / (1 - w); the last in units of the first
_MEAN, _SQUARE = 0.9, 0.99  # decay of Adam's averages
_EVERY = 5  # steps between two updates of the boxes
_BRANCH_STEPS, _BRANCH_RATE = 15, 0.01


@dataclass(frozen=True)
class Ascent:
    """The rows of L leaves: all units' lower ends, their upper ends, and the assumed row: R = 2 N + 1.

    multipliers: (1 - w) a, [L, R, N]. betas: [L, R].
    """

    multipliers: Tensor
    betas: Tensor

    def of(self, leaves: Tensor) -> "Ascent":
        """Return some of the leaves."""
        return Ascent(self.multipliers[leaves], self.betas[leaves])


class Searcher:
    """The layer in float32, every unit divided by 1 - w: its matrices for gradient ascent."""

    def __init__(self, layer: Layer):
        self.count = layer.count
        divisor = layer.divisor[:, None]
        self.recurrence = (layer.off_diagonal / divisor).float()
        moves = layer.x.radius > 0
        self.spread = (layer.inject.matrix * layer.x.radius / divisor)[:, moves].float()
        self.middle = ((layer.inject.matrix @ layer.x.center + layer.inject.offset) / layer.divisor).float()
        identity = torch.eye(self.count, device=self.middle.device)
        self.directions = torch.cat([identity, -identity, torch.zeros_like(identity[:1])])

    def start(self, leaves: int) -> Ascent:
        """Return first multipliers: those of intervals."""
        rows = self.directions.expand(leaves, -1, -1).clone()
        betas = torch.zeros(leaves, len(self.directions), device=rows.device)
        betas[:, -1] = 1
        return Ascent(rows, betas)

    def ascend(
        self, ascent: Ascent, low: Tensor, high: Tensor, row: Tensor, offset: Tensor, steps: int, units: Tensor
    ) -> Ascent:  # fmt: skip
        """Return better multipliers for leaves [L, N].

        row [L, N], offset [L]: the assumed rows, row . z + offset <= 0. units: [L, U], those whose rows ascend.
        """
        leaf = torch.arange(len(low), device=low.device)[:, None]
        last = torch.full_like(leaf, 2 * self.count)
        numbers = torch.cat([units, units + self.count, last], dim=1)
        e, a, beta = self.directions[numbers], ascent.multipliers[leaf, numbers], ascent.betas[leaf, numbers]
        free = torch.ones_like(beta)
        free[:, -1] = 0  # the assumed row itself has beta 1
        low, high, row, offset = low.float(), high.float(), row.float()[:, None], offset.float()[:, None]
        scale = row.abs().amax(2) + 1e-30  # betas are ascended in units of 1 / scale
        moments = [torch.zeros_like(value) for value in (a, a, beta, beta)]
        for step in range(steps):
            check()
            value, gradient, of_beta = self._value(a, beta, e, low, high, row, offset)
            if step % _EVERY == 0:
                low = low.scatter_reduce(1, units, value[:, : units.shape[1]], "amax")
                high = high.scatter_reduce(1, units, -value[:, units.shape[1] : -1], "amin")
            rate = _RATE * (1 - step / steps + _LAST_RATE)
            a = a + rate * _adam(moments[:2], gradient, step)
            beta = (beta + rate / scale * free * _adam(moments[2:], of_beta / scale, step)).clamp(min=0)
        multipliers, betas = ascent.multipliers.clone(), ascent.betas.clone()
        multipliers[leaf, numbers], betas[leaf, numbers] = a, beta
        return Ascent(multipliers, betas)

    def _value(
        self, a: Tensor, beta: Tensor, e: Tensor, low: Tensor, high: Tensor, row: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return bounds [L, R] with their supergradients in the multipliers and in beta."""
        of_z, of_q, of_x = beta[..., None] * row + a @ self.recurrence, e - a, a @ self.spread
        low, high = low[:, None], high[:, None]
        z_low, z_high = low.clamp(min=0), high.clamp(min=0)
        at_low, at_high = of_z * z_low + of_q * low, of_z * z_high + of_q * high
        upper, least = at_high < at_low, torch.minimum(at_low, at_high)
        at_zero = (low < 0) & (high > 0) & (least > 0)
        z = torch.where(upper, z_high, z_low).masked_fill(at_zero, 0)
        q = torch.where(upper, high, low).masked_fill(at_zero, 0)
        value = least.masked_fill(at_zero, 0).sum(2) + a @ self.middle - of_x.abs().sum(2) + beta * offset
        gradient = z @ self.recurrence.mT - q + self.middle - of_x.sign() @ self.spread.mT
        return value, gradient, (z * row).sum(2) + offset

    def best_split(self, a: Tensor, low: Tensor, high: Tensor, row: Tensor, offset: Tensor) -> int:
        """Return the unit of one leaf [N] whose two halves have the best bounds of the assumed row.

        a: [N], the row's multipliers, from which both halves of each unit ascend a few steps.
        """
        units = ((low < 0) & (high > 0)).nonzero()[:, 0]
        count = torch.arange(len(units), device=low.device)
        lows, highs = (end.float().repeat(2 * len(units), 1) for end in (low, high))
        lows[count, units], highs[count + len(units), units] = 0, 0
        rows, offsets = row.float().expand_as(lows)[:, None], offset.float().expand(len(lows))[:, None]
        a, beta = a.repeat(2 * len(units), 1)[:, None], torch.ones_like(offsets)
        best, moments = torch.full_like(offsets, -torch.inf), [torch.zeros_like(a), torch.zeros_like(a)]
        for step in range(_BRANCH_STEPS):
            value, gradient, _ = self._value(a, beta, torch.zeros_like(a), lows, highs, rows, offsets)
            best = torch.maximum(best, value)
            a = a + _BRANCH_RATE * (1 - step / _BRANCH_STEPS) * _adam(moments, gradient, step)
        active, inactive = best[: len(units), 0], best[len(units) :, 0]
        floor = torch.minimum(active, inactive).min() - 1e-3 * offset.abs().float() - 1e-30
        return int(units[((active - floor) * (inactive - floor)).argmax()])


def _adam(moments: list[Tensor], gradient: Tensor, step: int) -> Tensor:
    """Return Adam's direction, and update its two averages in place."""
    mean, square = moments
    mean.mul_(_MEAN).add_(gradient, alpha=1 - _MEAN)
    square.mul_(_SQUARE).addcmul_(gradient, gradient, value=1 - _SQUARE)
    size = (square / (1 - _SQUARE ** (step + 1))).sqrt_().add_(1e-30)
    return mean / (1 - _MEAN ** (step + 1)) / size
