"""Decide rows of a network with one strongly monotone equilibrium: tightening of boxes, then branch and bound.

Each row is assumed to be at most 0. Boxes of all units are tightened under that assumption; it is refuted where a box
is empty or the row's own bound is above 0. Else a unit's sign is split.
"""

from dataclasses import replace

import torch
from torch import Tensor

from cerdeq.branch.attack import prove_point
from cerdeq.branch.leaves import SearchQuery
from cerdeq.branch.search import CERTIFIED, FALSIFIED, TIMEOUT, UNKNOWN, Budget, Decision
from cerdeq.deadline import DeadlineError, check
from cerdeq.equilibrium.monotone.attack import attack
from cerdeq.equilibrium.monotone.bounds import EquilibriumBounds, Leaf, TighteningStep
from cerdeq.equilibrium.monotone.network import EquilibriumNetwork
from cerdeq.equilibrium.monotone.tightening import ROW_PHASES, TightenedLeaf, Tightening, all_units, unstable_units
from cerdeq.linear_program import minimise

_FIRST_ROW_PHASES = (50,)  # of the rows alone, which is cheap
_LEAF_PHASES = (40,)
_BATCH = 16  # leaves that are split together
_POSITIVE = 2.0**-30  # what is proved of a certified row, in units of its size: that it is above this


class MonotoneSearch:
    """The tree of one image, whose leaves are not proved yet.

    _nodes: parent, row, unit and sign of each node; _steps: those that tightened it. _limits: [K], what is
    proved of a certified row: that it is above this. _offsets: [K], of the rows less their limits.
    """

    def __init__(self, network: EquilibriumNetwork, exact: SearchQuery, lower: Tensor, certificates: bool):
        """exact, lower, certificates: as in `Problem`."""
        self._network, self._exact, self._lower, self._certificates = network, exact, lower.clone(), certificates
        self._tightening, self._nodes = Tightening(network), [(-1, -1, -1, 0)]
        self._steps = list[list[TighteningStep]]()
        high = network.z.center + network.z.radius
        self._limits = _POSITIVE * (network.rows.matrix.abs() @ high + network.rows.offset.abs())
        self._offsets = network.row_offsets - self._limits
        self._point: Tensor | None = None

    def advance(self, budget: Budget) -> Decision:
        """Tighten and split leaves, row by row. It is the only search of its network: one turn decides."""
        try:
            status = self._run(budget)
        except DeadlineError:
            status = TIMEOUT
        tensors = _certificate(self._nodes, self._steps) if self._certificates and status == CERTIFIED else {}
        return Decision(status, self._lower, self._point, tensors)

    def _run(self, budget: Budget) -> str:
        rows, statuses = (~(self._lower > 0)).nonzero()[:, 0].tolist(), set[str]()
        root = self._tightening.first_leaf()
        self._steps.append(root.steps)
        assumed = [replace(root.leaf, row=self._network.rows.matrix[row], offset=self._offsets[row]) for row in rows]
        leaves = [self._child(root, leaf, row, -1, 0) for row, leaf in zip(rows, assumed, strict=True)]
        self._tightening.tighten(leaves, _FIRST_ROW_PHASES, lambda stacked: all_units(stacked)[:, :0])
        for units_of in (unstable_units, all_units):  # the cheaper one closes most of them
            self._tightening.tighten([leaf for leaf in leaves if not leaf.is_closed], ROW_PHASES, units_of)
        if self._is_falsified([row for row, leaf in zip(rows, leaves, strict=True) if not leaf.is_closed]):
            return FALSIFIED
        for row, leaf in zip(rows, leaves, strict=True):
            status = self._close(leaf, budget)
            if status in (FALSIFIED, TIMEOUT):
                return status
            if status == CERTIFIED:  # half: offsets less limits are rounded
                self._lower[row] = torch.maximum(self._lower[row], self._limits[row] / 2)
            statuses.add(status)
        return UNKNOWN if UNKNOWN in statuses else CERTIFIED

    def _is_falsified(self, rows: list[int]) -> bool:
        """Return whether an attack finds a counterexample to one of these rows, which is kept."""
        if not rows:
            return False
        lowest, points = attack(self._network, torch.tensor(rows, device=self._lower.device))
        order = lowest.argsort().tolist()
        return any(lowest[number] < 0 and self._falsifies(points[number]) for number in order)

    def _close(self, leaf: TightenedLeaf, budget: Budget) -> str:
        """Close all leaves of one row. Return CERTIFIED, or why that fails: FALSIFIED, TIMEOUT or UNKNOWN.

        A leaf that cannot be decided does not end the search: another may hold a counterexample.
        """
        queue, status = [leaf] if not leaf.is_closed else [], CERTIFIED
        while queue:
            batch, queue = queue[-_BATCH:], queue[:-_BATCH]
            halves = []
            for parent in batch:
                check()
                if budget.is_turn_over:
                    return TIMEOUT
                if not bool(parent.leaf.is_unstable.any()):
                    if not self._solve(parent):
                        if self._point is not None:
                            return FALSIFIED
                        check()  # the linear program may have run out of time
                        status = UNKNOWN
                    continue
                unit = self._tightening.ascent.best_split(parent.multipliers.scaled[0, -1], parent.leaf)
                halves += [self._half(parent, unit, sign) for sign in (1, -1)]
                budget.used += 2
            if halves:
                self._tightening.tighten(halves, _LEAF_PHASES, unstable_units)
                queue += [half for half in halves if not half.is_closed]
        return status

    def _half(self, parent: TightenedLeaf, unit: int, sign: int) -> TightenedLeaf:
        """Return a new leaf: the half of another in which a unit has this sign."""
        low, high = parent.leaf.low.clone(), parent.leaf.high.clone()
        (low if sign > 0 else high)[unit] = 0  # it was unstable
        half = replace(parent.leaf, low=low, high=high)
        return self._child(parent, half, self._nodes[parent.number][1], unit, sign)

    def _child(self, parent: TightenedLeaf, leaf: Leaf, row: int, unit: int, sign: int) -> TightenedLeaf:
        child = TightenedLeaf(len(self._nodes), leaf, parent.multipliers)
        self._nodes.append((parent.number, row, unit, sign))
        self._steps.append(child.steps)
        return child

    def _solve(self, leaf: TightenedLeaf) -> bool:
        """Return whether a leaf without unstable units is closed by its linear program; a point may falsify instead."""
        solved = _solve_affine(self._tightening.bounds, leaf.leaf)
        if solved is None:
            return False
        step, point = solved
        self._tightening.apply(leaf, step)
        if not leaf.is_closed and point is not None:
            self._falsifies(point)
        return leaf.is_closed

    def _falsifies(self, point: Tensor) -> bool:
        """Return whether a point is proved to make a row negative, and keep it."""
        self._point = prove_point(self._exact, point)
        return self._point is not None


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
    solution = minimise(*map(Tensor.numpy, map(Tensor.cpu, program)))
    if solution is None:
        return None
    none, one = torch.zeros(1, dtype=torch.long, device=low.device), torch.ones(1).to(low)
    a = -torch.from_numpy(solution.multipliers).to(low)[None]
    step = TighteningStep(none, none, a, one, 0 * one if solution.is_empty else one)
    return step, None if solution.is_empty else torch.from_numpy(solution.x[len(low) :]).to(low)


def _certificate(nodes: list[tuple[int, int, int, int]], steps: list[list[TighteningStep]]) -> dict[str, Tensor]:
    """Return the tensors of a tree; docs/developers/certificates.md describes them."""
    rows, multipliers, scales, betas, exact = [], [], [], [], []
    for number, order, step in ((n, order, step) for n, own in enumerate(steps) for order, step in enumerate(own)):
        place = torch.tensor([number, order]).expand(len(step.units), 2)
        rows.append(torch.cat([place, step.units.cpu()[:, None], step.signs.cpu()[:, None]], dim=1).int())
        multipliers.append(torch.zeros_like(step.multipliers).half() if step.is_exact else step.multipliers)
        scales.append(torch.zeros_like(step.scales) if step.is_exact else step.scales)
        betas.append(step.betas)
        exact.append(step.multipliers[: len(step.units) if step.is_exact else 0].double())
    if not rows:
        return {}
    tensors = {
        "nodes": torch.tensor(nodes, dtype=torch.int32), "rows": torch.cat(rows), "multipliers": torch.cat(multipliers),
        "scales": torch.cat(scales).float(), "betas": torch.cat(betas).float(), "exact": torch.cat(exact),
    }  # fmt: skip
    return {f"equilibrium/{name}": tensor.cpu() for name, tensor in tensors.items()}
