"""Decide rows of a network with one strongly monotone equilibrium: tightening of boxes, then branch and bound.

Each row is assumed to be at most 0. Boxes of all units are tightened under that assumption; it is refuted where a box
is empty or the row's own bound is above 0. Else a unit's sign is split. Multipliers are searched in float32; a box only
shrinks by what float64 proves with them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cerdeq.branch.budget_and_decision import CERTIFIED, FALSIFIED, TIMEOUT, UNKNOWN, Budget, Decision
from cerdeq.deadline import DeadlineError, check
from cerdeq.equilibrium.monotone.ascent import MultiplierAscent, Multipliers
from cerdeq.equilibrium.monotone.attack import attack
from cerdeq.equilibrium.monotone.bounds import EquilibriumBounds, Leaf, TighteningStep
from cerdeq.equilibrium.monotone.network import EquilibriumNetwork
from cerdeq.linear_program import minimise

_ROOT_PHASES = (25, 50, 100)  # steps of gradient ascent before float64 proves what they found
_FIRST_ROW_PHASES = (50,)  # of the rows alone, which is cheap
_ROW_PHASES = (25, 25, 50, 100, 100, 100)
_LEAF_PHASES = (40,)
_MOVED = 0.02  # a phase that shrinks the boxes by less than this share is the last
_BATCH = 16  # leaves that are split together
_POSITIVE = 2.0**-30  # what is proved of a certified row, in units of its size: that it is above this

NODES, ROWS, MULTIPLIERS, SCALES, BETAS, EXACT = "nodes", "rows", "multipliers", "scales", "betas", "exact"
PREFIX = "equilibrium/"


@dataclass
class Node:
    """A leaf of the tree: its parent's box with one more assumption.

    parent: its number, -1 of the root. row: the row of the spec that is assumed not to be positive, -1 of the root.
    unit, sign: the split that made it, -1 and 0 where there was none: z_unit = q_unit >= 0 (1) or q_unit <= 0 (-1).
    steps: those that tightened it.
    """

    parent: int
    row: int
    unit: int
    sign: int
    steps: list[TighteningStep] = field(default_factory=list)


@dataclass
class _OpenNode:
    """A node of the tree, by its number, with its proved leaf and its multipliers."""

    number: int
    leaf: Leaf
    multipliers: Multipliers
    is_closed: bool = False


class TreeSearch:
    """A search of one example.

    prove_counterexample: returns a point [d] if it is proved to make a row negative, else None.
    limits: [K], what is proved of a certified row: that it is above this. offsets: [K], of the rows less their limits.
    point: the counterexample, once there is one. closest: [d], the attack's point with the smallest value, after it.
    """

    def __init__(
        self, network: EquilibriumNetwork, prove_counterexample: Callable[[Tensor], Tensor | None], budget: Budget
    ):
        self.network, self.prove_counterexample, self.budget = network, prove_counterexample, budget
        self.bounds = EquilibriumBounds(network)
        self.ascent = MultiplierAscent(self.bounds)
        self.nodes = [Node(-1, -1, -1, 0)]
        high = network.z.center + network.z.radius
        self.limits = _POSITIVE * (network.rows.matrix.abs() @ high + network.rows.offset.abs())
        self.offsets = network.row_offsets - self.limits
        self.point: Tensor | None = None
        self.closest: Tensor | None = None

    def root(self) -> _OpenNode:
        """Return the box of all equilibria, tightened."""
        root = _OpenNode(0, self.bounds.first_leaf(), self.ascent.start(1))
        self._tighten([root], _ROOT_PHASES, _all_units)
        return root

    def run(self, rows: Tensor) -> tuple[str, Tensor]:
        """Return a status, and which of these rows of the spec are proved to be above their limits."""
        is_proved = torch.zeros(len(rows), dtype=torch.bool)
        try:
            root = self.root()
            nodes = [self._assume(root, row) for row in rows.tolist()]
            self._tighten(nodes, _FIRST_ROW_PHASES, lambda leaves: _all_units(leaves)[:, :0])
            for units_of in (_unstable_units, _all_units):  # the cheaper one closes most of them
                self._tighten([node for node in nodes if not node.is_closed], _ROW_PHASES, units_of)
            is_open = torch.tensor([not node.is_closed for node in nodes])
            if bool(is_open.any()) and self._is_falsified(rows[is_open]):
                return FALSIFIED, is_proved
            for number, node in enumerate(nodes):
                status = self._branch(node)
                if status in (FALSIFIED, TIMEOUT):
                    return status, is_proved
                is_proved[number] = status == CERTIFIED
        except DeadlineError:
            return TIMEOUT, is_proved
        return CERTIFIED if bool(is_proved.all()) else UNKNOWN, is_proved

    def _is_falsified(self, rows: Tensor) -> bool:
        """Return whether an attack finds a counterexample to one of these rows, which is kept."""
        lowest, points = attack(self.network, rows)
        order = lowest.argsort().tolist()
        self.closest = points[order[0]]
        return any(lowest[number] < 0 and self._falsifies(points[number]) for number in order)

    def _branch(self, node: _OpenNode) -> str:
        """Close all leaves of one row. Return CERTIFIED, or why that fails: FALSIFIED, TIMEOUT or UNKNOWN.

        A leaf that cannot be decided does not end the search: another may hold a counterexample.
        """
        queue, status = [node] if not node.is_closed else [], CERTIFIED
        while queue:
            batch, queue = queue[-_BATCH:], queue[:-_BATCH]
            children = []
            for parent in batch:
                check()
                if self.budget.is_exhausted:
                    return TIMEOUT
                if not bool(parent.leaf.is_unstable.any()):
                    if not self._solve(parent):
                        if self.point is not None:
                            return FALSIFIED
                        check()  # the linear program may have run out of time
                        status = UNKNOWN
                    continue
                unit = self.ascent.best_split(parent.multipliers.scaled[0, -1], parent.leaf)
                children += [self._half(parent, unit, sign) for sign in (1, -1)]
                self.budget.used += 2
            if children:
                self._tighten(children, _LEAF_PHASES, _unstable_units)
                queue += [child for child in children if not child.is_closed]
        return status

    def _assume(self, root: _OpenNode, row: int) -> _OpenNode:
        """Return a new node below the root, in which a row is assumed not to be positive."""
        self.nodes.append(Node(0, row, -1, 0))
        leaf = replace(root.leaf, row=self.network.rows.matrix[row], offset=self.offsets[row])
        return _OpenNode(len(self.nodes) - 1, leaf, root.multipliers)

    def _half(self, parent: _OpenNode, unit: int, sign: int) -> _OpenNode:
        """Return a new node: the half of a leaf in which a unit has this sign."""
        low, high = parent.leaf.low.clone(), parent.leaf.high.clone()
        if sign > 0:
            low[unit] = low[unit].clamp(min=0)
        else:
            high[unit] = high[unit].clamp(max=0)
        self.nodes.append(Node(parent.number, self.nodes[parent.number].row, unit, sign))
        return _OpenNode(len(self.nodes) - 1, replace(parent.leaf, low=low, high=high), parent.multipliers)

    def _tighten(self, nodes: list[_OpenNode], phases: tuple[int, ...], units_of: Callable[[Leaf], Tensor]) -> None:
        """Tighten leaves until they are closed or little moves. units_of: the units of L leaves that ascend, [L, U]."""
        for steps in phases:
            if not nodes:
                return
            leaves = Leaf.stacked([node.leaf for node in nodes])
            units = units_of(leaves)
            joint = Multipliers.joined([node.multipliers for node in nodes])
            joint = self.ascent.ascend(joint, leaves, steps, units)
            for position, node in enumerate(nodes):
                node.multipliers = joint.of(torch.tensor([position]))
                self._tighten_by_ascent(node, units[position])
            nodes = [
                node
                for node, before in zip(nodes, leaves.width, strict=True)
                if not node.is_closed and node.leaf.width < (1 - _MOVED) * before
            ]

    def _tighten_by_ascent(self, node: _OpenNode, units: Tensor) -> None:
        """Apply the multipliers of these units and of the assumed row in float64, and keep those that helped."""
        n, last = self.bounds.count, torch.tensor([2 * self.bounds.count], device=units.device)
        numbers = torch.cat([units, units + n, last])
        signs = torch.cat([torch.ones_like(units), -torch.ones_like(units), torch.zeros_like(last)])
        step = TighteningStep.rounded(
            torch.cat([units, units, torch.zeros_like(last)]), signs,
            node.multipliers.scaled[0, numbers], node.multipliers.betas[0, numbers],
        )  # fmt: skip
        self._apply(node, step)

    def _apply(self, node: _OpenNode, step: TighteningStep) -> None:
        node.leaf, node.is_closed, useful = self.bounds.apply(node.leaf, step)
        self.nodes[node.number].steps.append(step.of(useful))

    def _solve(self, node: _OpenNode) -> bool:
        """Return whether a leaf without unstable units is closed by its linear program; a point may falsify instead."""
        solved = _solve_affine(self.bounds, node.leaf)
        if solved is None:
            return False
        step, point = solved
        self._apply(node, step)
        if not node.is_closed and point is not None:
            self._falsifies(point)
        return node.is_closed

    def _falsifies(self, point: Tensor) -> bool:
        """Return whether a point is proved to make a row negative, and keep it."""
        self.point = self.prove_counterexample(point)
        return self.point is not None


def _all_units(leaves: Leaf) -> Tensor:
    """Return all units of L leaves: [L, N]."""
    return torch.arange(leaves.low.shape[1], device=leaves.low.device).expand(leaves.low.shape)


def _unstable_units(leaves: Leaf) -> Tensor:
    """Return the unstable units of L leaves, filled up with others to one number: [L, U]."""
    unstable = leaves.is_unstable.int()
    return unstable.argsort(dim=1, descending=True, stable=True)[:, : max(1, int(unstable.sum(1).max()))]


def _solve_affine(layer: EquilibriumBounds, leaf: Leaf) -> tuple[TighteningStep, Tensor | None] | None:
    """Return the best multipliers of the assumed row in a leaf without an unstable unit, and the input [d] there.

    If the leaf is empty, the multipliers show that, and there is no input. None if the program was not solved.
    """
    low, high, x, divisor = leaf.low, leaf.high, layer.x, layer.divisor[:, None]
    active = (low >= 0).to(low)
    of_q = layer.off_diagonal / divisor * active - torch.eye(len(low)).to(low)
    rows, limits = torch.cat([of_q, layer.inject.matrix / divisor], dim=1), -layer.inject.offset / layer.divisor
    ends = torch.cat([low, x.center - x.radius]), torch.cat([high, x.center + x.radius])
    cost = torch.cat([leaf.row * active, torch.zeros_like(x.center)])
    program = cost, rows, limits, torch.stack(ends, dim=1)
    solution = minimise(*map(Tensor.numpy, map(Tensor.cpu, program)), is_equation=True)
    if solution is None:
        return None
    none, one = torch.zeros(1, dtype=torch.long, device=low.device), torch.ones(1).to(low)
    a = -torch.from_numpy(solution.multipliers).to(low)[None]
    step = TighteningStep(none, none, a, one, 0 * one if solution.is_empty else one)
    return step, None if solution.is_empty else torch.from_numpy(solution.x[len(low) :]).to(low)


def row_bounds(network: EquilibriumNetwork) -> Tensor:
    """Return lower bounds [K] of the rows of a network's spec: over tightened boxes, without splits."""
    search, rows, offsets = TreeSearch(network, lambda point: None, Budget()), network.rows.matrix, network.row_offsets
    root = search.root().leaf
    leaves = [replace(root, row=row, offset=offset) for row, offset in zip(rows, offsets, strict=True)]
    none = torch.zeros(len(rows), 0, dtype=torch.long, device=rows.device)
    start = search.ascent.start(len(rows))
    multipliers = search.ascent.ascend(start, Leaf.stacked(leaves), sum(_ROW_PHASES), none)
    unit, bounds = torch.zeros(1, dtype=torch.long, device=rows.device), []
    for leaf, a in zip(leaves, multipliers.scaled[:, -1:], strict=True):
        step = TighteningStep.rounded(unit, unit, a, torch.ones_like(a[:, 0]))
        bounds.append(search.bounds.lower_bounds(leaf, step)[0])
    return torch.stack(bounds)


def decide_rows(
    network: EquilibriumNetwork, lower: Tensor, prove_counterexample: Callable[[Tensor], Tensor | None],
    budget: Budget, certificates: bool,
) -> Decision:  # fmt: skip
    """Return what a search decides of the rows of a network whose proved bounds `lower` [K] are not above 0."""
    search = TreeSearch(network, prove_counterexample, budget)
    rows = (~(lower > 0)).nonzero()[:, 0]
    status, is_proved = search.run(rows)
    lower = lower.clone()
    proved = rows[is_proved]
    lower[proved] = torch.maximum(lower[proved], search.limits[proved] / 2)  # half: offsets less limits are rounded
    tensors = certificate(search.nodes) if certificates and status == CERTIFIED else {}
    return Decision(status, lower, search.point, search.closest, tensors)


def certificate(nodes: list[Node]) -> dict[str, Tensor]:
    """Return the tensors of a tree; docs/certificates.md describes them."""
    tree = torch.tensor([[node.parent, node.row, node.unit, node.sign] for node in nodes], dtype=torch.int32)
    parts, multipliers, scales, betas, exact = [], [], [], [], []
    for number, node in enumerate(nodes):
        for order, step in enumerate(node.steps):
            place = torch.tensor([number, order]).expand(len(step.units), 2)
            parts.append(torch.cat([place, step.units.cpu()[:, None], step.signs.cpu()[:, None]], dim=1).int())
            multipliers.append(torch.zeros_like(step.multipliers).half() if step.is_exact else step.multipliers)
            scales.append(torch.zeros_like(step.scales) if step.is_exact else step.scales)
            betas.append(step.betas)
            if step.is_exact:
                exact.append(step.multipliers)
    if not parts:
        return {}
    none = multipliers[0].new_zeros(0, multipliers[0].shape[1]).double()
    tensors = {
        NODES: tree, ROWS: torch.cat(parts), MULTIPLIERS: torch.cat(multipliers), SCALES: torch.cat(scales).float(),
        BETAS: torch.cat(betas).float(), EXACT: torch.cat([none, *exact]),
    }  # fmt: skip
    return {PREFIX + name: tensor.cpu() for name, tensor in tensors.items()}
