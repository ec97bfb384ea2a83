"""Decide rows of a network with one strongly monotone equilibrium: tightening of boxes, then branch and bound.

Each row is assumed to be at most 0. Boxes of all units are tightened under that assumption; it is refuted where a box
is empty or the row's own bound is above 0. Else a unit's sign is split. Multipliers are searched in float32; a box only
shrinks by what float64 proves with them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cerdeq.branch.decision import CERTIFIED, FALSIFIED, TIMEOUT, UNKNOWN, Budget, Decision
from cerdeq.deadline import DeadlineError, check
from cerdeq.equilibrium.monotone.ascent import Ascent, Searcher
from cerdeq.equilibrium.monotone.attack import attack
from cerdeq.equilibrium.monotone.bounds import Layer, Step
from cerdeq.equilibrium.monotone.network import EquilibriumNetwork
from cerdeq.equilibrium.monotone.program import solve_leaf
from cerdeq.equilibrium.monotone.tree import Node, certificate

_ROOT_PHASES = (25, 50, 100)  # steps of gradient ascent before float64 proves what they found
_ROW_PHASES = (25, 25, 50, 100, 100, 100)
_LEAF_PHASES = (40,)
_MOVED = 0.02  # a phase that shrinks the boxes by less than this share is the last
_BATCH = 16  # leaves that are split together
_POSITIVE = 2.0**-30  # what is proved of a certified row, in units of its size: that it is above this

Proof = Callable[[Tensor], Tensor | None]


@dataclass
class _Leaf:
    """An open node with its proved box low, high [N] of q and its multipliers."""

    number: int
    low: Tensor
    high: Tensor
    ascent: Ascent
    closed: bool = False

    @property
    def unstable(self) -> Tensor:
        """The units whose sign is open."""
        return ((self.low < 0) & (self.high > 0)).nonzero()[:, 0]


class Search:
    """A search of one example. prove: returns a point [d] if it is proved to make a row negative, else None."""

    def __init__(self, network: EquilibriumNetwork, prove: Proof, budget: Budget):
        self.network, self.prove, self.budget = network, prove, budget
        self.layer = Layer(network)
        self.searcher = Searcher(self.layer)
        self.nodes = [Node(-1, -1, -1, 0)]
        rows = network.rows
        high = network.z.center + network.z.radius
        self.limits = _POSITIVE * (rows.matrix.abs() @ high + rows.offset.abs())
        self.offsets = rows.offset - 2 * rows.error - self.limits * (1 + 1e-15)
        self.point: Tensor | None = None

    def root(self) -> _Leaf:
        """Return the box of all equilibria, tightened."""
        low, high = self.layer.first_leaf()
        leaf = _Leaf(0, low, high, self.searcher.start(1))
        none = torch.zeros_like(low)
        self._tighten([leaf], none[None], none[:1], _ROOT_PHASES)
        return leaf

    def run(self, rows: Tensor) -> tuple[str, Tensor]:
        """Return a status, and which of these rows of the spec are proved to be above their limits."""
        is_proved = torch.zeros(len(rows), dtype=torch.bool)
        try:
            lowest, points = attack(self.network, rows)
            for number in lowest.argsort().tolist():
                if lowest[number] < 0 and self._falsifies(points[number]):
                    return FALSIFIED, is_proved
            root = self.root()
            leaves = [self._child(root, row, -1, 0) for row in rows.tolist()]
            row, offset = self.network.rows.matrix[rows], self.offsets[rows]
            self._tighten(leaves, row, offset, _ROW_PHASES)
            for number, leaf in enumerate(leaves):
                status = self._branch(leaf, row[number], offset[number])
                if status != CERTIFIED:
                    return status, is_proved
                is_proved[number] = True
        except DeadlineError:
            return TIMEOUT, is_proved
        return CERTIFIED, is_proved

    def _branch(self, leaf: _Leaf, row: Tensor, offset: Tensor) -> str:
        """Close all leaves of one row. Return CERTIFIED, FALSIFIED or UNKNOWN."""
        queue = [leaf] if not leaf.closed else []
        while queue:
            batch, queue = queue[-_BATCH:], queue[:-_BATCH]
            children = []
            for parent in batch:
                check()
                if self.budget.is_exhausted:
                    return UNKNOWN
                if not len(parent.unstable):
                    if not self._solve(parent, row, offset):
                        return UNKNOWN if self.point is None else FALSIFIED
                    continue
                a = parent.ascent.multipliers[0, -1]
                unit = self.searcher.best_split(a, parent.low, parent.high, row, offset)
                for sign in (1, -1):
                    children.append(self._child(parent, self.nodes[parent.number].row, unit, sign))
                    self.budget.used += 1
            if children:
                count = len(children)
                self._tighten(children, row.expand(count, -1), offset.expand(count), _LEAF_PHASES)
                queue += [child for child in children if not child.closed]
        return CERTIFIED

    def _child(self, parent: _Leaf, row: int, unit: int, sign: int) -> _Leaf:
        """Return a new node below a leaf."""
        low, high = parent.low.clone(), parent.high.clone()
        if sign > 0:
            low[unit] = low[unit].clamp(min=0)
        elif sign < 0:
            high[unit] = high[unit].clamp(max=0)
        self.nodes.append(Node(parent.number, row, unit, sign))
        return _Leaf(len(self.nodes) - 1, low, high, parent.ascent)

    def _tighten(self, leaves: list[_Leaf], row: Tensor, offset: Tensor, phases: tuple[int, ...]) -> None:
        """Tighten leaves under their assumed rows [L, N], until they are closed or little moves.

        At the root and under a new row all units' bounds ascend, else those of unstable units.
        """
        left = list(range(len(leaves)))
        for steps in phases:
            if not left:
                return
            ends = torch.stack([leaves[i].low for i in left]), torch.stack([leaves[i].high for i in left])
            units = self._units(*ends) if phases is _LEAF_PHASES else self._all_units(len(left))
            joint = Ascent(*(torch.cat([vars(leaves[i].ascent)[f] for i in left]) for f in ("multipliers", "betas")))
            joint = self.searcher.ascend(joint, *ends, row[left], offset[left], steps, units)
            remaining = []
            for position, i in enumerate(left):
                leaf, before = leaves[i], (leaves[i].high - leaves[i].low).sum()
                leaf.ascent = joint.of(torch.tensor([position]))
                self._prove(leaf, row[i], offset[i], units[position])
                if not leaf.closed and (leaf.high - leaf.low).sum() < (1 - _MOVED) * before:
                    remaining.append(i)
            left = remaining

    def _units(self, low: Tensor, high: Tensor) -> Tensor:
        """Return the unstable units of leaves [L, N], filled up with others to one number: [L, U]."""
        unstable = ((low < 0) & (high > 0)).int()
        return unstable.argsort(dim=1, descending=True, stable=True)[:, : max(1, int(unstable.sum(1).max()))]

    def _all_units(self, leaves: int) -> Tensor:
        return torch.arange(self.layer.count, device=self.offsets.device).expand(leaves, -1)

    def _prove(self, leaf: _Leaf, row: Tensor, offset: Tensor, units: Tensor) -> None:
        """Apply the multipliers that a leaf's ascent has found, in float64, and keep those that did something."""
        n, last = self.layer.count, torch.tensor([2 * self.layer.count], device=units.device)
        numbers = torch.cat([units, units + n, last])
        signs = torch.cat([torch.ones_like(units), -torch.ones_like(units), torch.zeros_like(last)])
        step = Step.rounded(
            torch.cat([units, units, torch.zeros_like(last)]), signs,
            leaf.ascent.multipliers[0, numbers], leaf.ascent.betas[0, numbers],
        )  # fmt: skip
        self._apply(leaf, step, row, offset)

    def _apply(self, leaf: _Leaf, step: Step, row: Tensor, offset: Tensor) -> None:
        leaf.low, leaf.high, leaf.closed, useful = self.layer.apply(leaf.low, leaf.high, step, row, offset)
        self.nodes[leaf.number].steps.append(step.of(useful))

    def _solve(self, leaf: _Leaf, row: Tensor, offset: Tensor) -> bool:
        """Return whether a leaf without unstable units is closed by its linear program; a point may falsify instead."""
        solved = solve_leaf(self.layer, leaf.low, leaf.high, row)
        if solved is None:
            return False
        step, point = solved
        self._apply(leaf, step, row, offset)
        return leaf.closed or (point is not None and self._falsifies(point) and False)

    def _falsifies(self, point: Tensor) -> bool:
        """Return whether a point is proved to make a row negative, and keep it."""
        self.point = self.prove(point)
        return self.point is not None


def row_bounds(network: EquilibriumNetwork) -> Tensor:
    """Return lower bounds [K] of the rows of a network's spec: over tightened boxes, without splits."""
    search, rows = Search(network, lambda point: None, Budget()), network.rows.matrix
    root, offsets = search.root(), network.rows.offset - 2 * network.rows.error
    ends = root.low.expand_as(rows), root.high.expand_as(rows)
    ascent, none = search.searcher.start(len(rows)), torch.zeros(len(rows), 0, dtype=torch.long, device=rows.device)
    ascent = search.searcher.ascend(ascent, *ends, rows, offsets, sum(_ROW_PHASES), none)
    unit, bounds = torch.zeros(1, dtype=torch.long, device=rows.device), []
    for row, offset, a in zip(rows, offsets, ascent.multipliers[:, -1:], strict=True):
        step = Step.rounded(unit, unit, a, torch.ones_like(a[:, 0]))
        bounds.append(search.layer.lower_bounds(root.low, root.high, step, row, offset)[0])
    return torch.stack(bounds)


def decide_rows(
    network: EquilibriumNetwork, lower: Tensor, prove: Proof, budget: Budget, certificates: bool
) -> Decision:  # fmt: skip
    """Return what a search decides of the rows of a network whose proved bounds `lower` [K] are not above 0."""
    search = Search(network, prove, budget)
    rows = (~(lower > 0)).nonzero()[:, 0]
    status, is_proved = search.run(rows)
    lower = lower.clone()
    proved = rows[is_proved]
    lower[proved] = torch.maximum(lower[proved], search.limits[proved] / 2)
    tensors = certificate(search.nodes) if certificates and status == CERTIFIED else {}
    return Decision(status, lower, search.point, certificate=tensors)
