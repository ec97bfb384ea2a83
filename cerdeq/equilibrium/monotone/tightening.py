"""Tighten the boxes of leaves in turns: multipliers are searched in float32, and float64 proves what they found."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cerdeq.equilibrium.monotone.ascent import MultiplierAscent, Multipliers
from cerdeq.equilibrium.monotone.bounds import EquilibriumBounds, Leaf, TighteningStep
from cerdeq.equilibrium.monotone.network import EquilibriumNetwork

ROW_PHASES = (25, 25, 50, 100, 100, 100)  # steps of gradient ascent before float64 proves what they found
_FIRST_PHASES = (25, 50, 100)
_MOVED = 0.02  # a phase that shrinks the boxes by less than this share is the last


@dataclass
class TightenedLeaf:
    """A leaf that is proved, with the multipliers of its last ascent and the steps that tightened it.

    number: in a tree. is_closed: whether it is refuted.
    """

    number: int
    leaf: Leaf
    multipliers: Multipliers
    steps: list[TighteningStep] = field(default_factory=list)
    is_closed: bool = False


class Tightening:
    """Tightening of the leaves of one network, by multipliers of their units and of the assumed row."""

    def __init__(self, network: EquilibriumNetwork):
        self.bounds = EquilibriumBounds(network)
        self.ascent = MultiplierAscent(self.bounds)

    def first_leaf(self) -> TightenedLeaf:
        """Return the box of all equilibria, tightened."""
        leaf = TightenedLeaf(0, self.bounds.first_leaf(), self.ascent.start(1))
        self.tighten([leaf], _FIRST_PHASES, all_units)
        return leaf

    def tighten(self, leaves: list[TightenedLeaf], phases: tuple[int, ...], units_of: Callable[[Leaf], Tensor]) -> None:
        """Tighten leaves until they are closed or little moves. units_of: the units of L leaves that ascend, [L, U]."""
        for steps in phases:
            if not leaves:
                return
            stacked = Leaf.stacked([each.leaf for each in leaves])
            units = units_of(stacked)
            joint = Multipliers.joined([each.multipliers for each in leaves])
            joint = self.ascent.ascend(joint, stacked, steps, units)
            for position, each in enumerate(leaves):
                each.multipliers = joint.of(torch.tensor([position]))
                self.apply(each, self._rounded_step(each.multipliers, units[position]))
            leaves = [
                each
                for each, before in zip(leaves, stacked.width, strict=True)
                if not each.is_closed and each.leaf.width < (1 - _MOVED) * before
            ]

    def apply(self, leaf: TightenedLeaf, step: TighteningStep) -> None:
        """Tighten a leaf by a step in float64, and keep the rows that helped."""
        leaf.leaf, leaf.is_closed, useful = self.bounds.apply(leaf.leaf, step)
        leaf.steps.append(step.of(useful))

    def _rounded_step(self, multipliers: Multipliers, units: Tensor) -> TighteningStep:
        """Return the step of one leaf's multipliers of these units and of the assumed row."""
        n, last = self.bounds.count, torch.tensor([2 * self.bounds.count], device=units.device)
        numbers = torch.cat([units, units + n, last])
        signs = torch.cat([torch.ones_like(units), -torch.ones_like(units), torch.zeros_like(last)])
        each = torch.cat([units, units, torch.zeros_like(last)])
        return TighteningStep.rounded(each, signs, multipliers.scaled[0, numbers], multipliers.betas[0, numbers])


def all_units(leaves: Leaf) -> Tensor:
    """Return all units of L leaves: [L, N]."""
    return torch.arange(leaves.low.shape[1], device=leaves.low.device).expand(leaves.low.shape)


def unstable_units(leaves: Leaf) -> Tensor:
    """Return the unstable units of L leaves, filled up with others to one number: [L, U]."""
    unstable = leaves.is_unstable.int()
    return unstable.argsort(dim=1, descending=True, stable=True)[:, : max(1, int(unstable.sum(1).max()))]


def row_bounds(network: EquilibriumNetwork) -> Tensor:
    """Return lower bounds [K] of the rows of a network's spec: over tightened boxes, without splits."""
    tightening, rows, offsets = Tightening(network), network.rows.matrix, network.row_offsets
    root = tightening.first_leaf().leaf
    leaves = [replace(root, row=row, offset=offset) for row, offset in zip(rows, offsets, strict=True)]
    none = torch.zeros(len(rows), 0, dtype=torch.long, device=rows.device)
    start = tightening.ascent.start(len(rows))
    multipliers = tightening.ascent.ascend(start, Leaf.stacked(leaves), sum(ROW_PHASES), none)
    unit, bounds = torch.zeros(1, dtype=torch.long, device=rows.device), []
    for leaf, a in zip(leaves, multipliers.scaled[:, -1:], strict=True):
        step = TighteningStep.rounded(unit, unit, a, torch.ones_like(a[:, 0]))
        bounds.append(tightening.bounds.lower_bounds(leaf, step)[0])
    return torch.stack(bounds)
