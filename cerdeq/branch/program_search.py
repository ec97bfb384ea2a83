"""Depth-first search over the signs of ReLU inputs, with the linear program of every leaf.

A program starts from the solution of the one before, and the split of a leaf changes ends of columns alone. Its
solution names the unit to split: the one whose distance from its ReLU costs the row most. Its multipliers give the
slopes and multipliers of a linear bound. Only that bound, proved in float64 with rounding counted, closes a leaf. A
leaf whose program is above 0 but whose bound is not is split like any other.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cerdeq.branch.attack import find_counterexample
from cerdeq.branch.leaf_program import LeafProgram, LeafSolution
from cerdeq.branch.leaves import Leaves, certificate_tensors, concatenate, root_leaves
from cerdeq.branch.network_rows import network_rows
from cerdeq.branch.search import CERTIFIED, FALSIFIED, TIMEOUT, UNKNOWN, Budget, Decision, Problem
from cerdeq.branch.threads import map_parts

_WORKERS = 4  # each with a program and a queue of its own, whatever the number of threads
_LEAVES = 64  # of a worker, between two proofs
_ANY_UNIT = 1e-12  # added to each cost, so that units with cost 0 can still be split, last


@dataclass(frozen=True)
class _Leaf:
    """A leaf: a row of the spec and signs int8 [units].

    share: of all rows' inputs, each split halves it. parent: the last solution on the way to it. solution: its own.
    unit: to split next, -1 if all are split.
    """

    row: int
    signs: np.ndarray
    share: float
    parent: LeafSolution | None
    solution: LeafSolution | None = None
    unit: int = -1


class _Worker:
    """A queue of leaves, of which the last one is next, and the program that solves them."""

    def __init__(self, program: LeafProgram):
        self.program, self.queue = program, list[_Leaf]()

    def solve(self, halves: "ProgramSearch", end: float) -> list[_Leaf]:
        """Solve leaves until the time `end`, and halve those that are not above 0 at once; return the solved leaves."""
        solved = list[_Leaf]()
        while self.queue and len(solved) < _LEAVES and (not solved or time.monotonic() < end):
            leaf = self.queue.pop()
            solution = self.program.solve(leaf.row, leaf.signs, leaf.parent)
            leaf = replace(leaf, solution=solution, unit=_unit_to_split(leaf, solution))
            solved.append(leaf)
            if leaf.unit >= 0 and not _is_above_0(leaf):
                self.queue += halves.halves(leaf)
        return solved


class ProgramSearch:
    """The leaves of one image that are not proved yet.

    open_share: the share of all rows' inputs in these leaves.
    """

    def __init__(self, problem: Problem):
        exact, lower, rows = problem.exact, problem.lower, problem.rows
        self._exact, self._lower, self._memory = exact, lower, problem.memory
        self._layout, roots = root_leaves(exact, exact, rows)
        self._default = roots.choices[:1]
        self._proved: list[Leaves] | None = [roots.of(slice(0))] if problem.certificates else None
        self._row_bounds = lower.new_full((len(lower),), torch.inf)
        self.open_share, self._workers = 1.0, list[_Worker]()
        network = network_rows(exact, self._layout)
        self._unprovable = set[int]()  # rows with a leaf that is neither proved nor falsified, and cannot be split
        if network is not None:
            self._workers = [_Worker(LeafProgram(network)) for _ in range(_WORKERS)]
            signs = roots.signs[0].cpu().numpy()
            self._workers[0].queue = [_Leaf(row, signs, 1 / len(rows), None) for row in rows.tolist()]

    def advance(self, budget: Budget) -> Decision:
        """Solve, prove and halve leaves until the image is decided or the turn is over; a later call goes on then.

        The decision is UNKNOWN if the network has no program, or if a leaf with all signs was neither proved nor
        falsified. The other leaves of its row are not searched then; those of other rows may still falsify the image.
        """
        while any(worker.queue for worker in self._workers):
            self._share_leaves()
            busy = [worker for worker in self._workers if worker.queue]
            parts = map_parts(lambda worker: worker.solve(self, budget.turn_deadline), busy, torch.device("cpu"))
            solved = [leaf for part in parts for leaf in part]
            budget.used += len(solved)
            if (point := self._counterexample(solved)) is not None:
                return Decision(FALSIFIED, self._lower, point)
            self._prove([leaf for leaf in solved if _is_above_0(leaf)])
            for worker in self._workers:
                worker.queue = [leaf for leaf in worker.queue if leaf.row not in self._unprovable]
            if budget.is_turn_over:
                return Decision(TIMEOUT, self._lower)
        if self._unprovable or not self._workers:
            return Decision(UNKNOWN, self._lower)
        lower = torch.where(self._lower > 0, self._lower, self._row_bounds)
        proved = {} if self._proved is None else certificate_tensors(self._layout, concatenate(self._proved))
        return Decision(CERTIFIED, lower, certificate=proved)

    def halves(self, leaf: _Leaf) -> list[_Leaf]:
        """Return both cases of a leaf's unit, the one that holds the solution last."""
        solution = leaf.parent if leaf.solution is None or leaf.solution.is_empty else leaf.solution
        first = -1 if leaf.solution is not None and leaf.solution.is_active[leaf.unit] else 1
        cases = []
        for sign in (first, -first):
            signs = leaf.signs.copy()
            signs[leaf.unit] = sign
            completed = self._layout.parallel.complete(torch.from_numpy(signs)[None].to(self._lower.device))
            signs = completed[0].cpu().numpy()
            cases.append(_Leaf(leaf.row, signs, leaf.share / 2, solution))
        return cases

    def _share_leaves(self) -> None:
        """Give workers without leaves half of another's, the largest ones."""
        for worker in self._workers:
            if not worker.queue:
                other = max(self._workers, key=lambda each: len(each.queue))
                count = len(other.queue) // 2
                worker.queue, other.queue = other.queue[:count], other.queue[count:]

    def _counterexample(self, leaves: Sequence[_Leaf]) -> Tensor | None:
        """Return a point at which a row is proved to be negative, from the solutions that are not above 0, or None."""
        points = [leaf.solution.x for leaf in leaves if leaf.solution is not None and not leaf.solution.value > 0]
        self._unprovable |= {leaf.row for leaf in leaves if leaf.unit < 0 and not _is_above_0(leaf)}
        if not points:
            return None
        center = self._exact.values[0].center
        stacked = torch.from_numpy(np.stack(points)).to(center).view(-1, *center.shape[1:])
        values, _ = self._exact.at(stacked)
        return find_counterexample(self._exact, self._exact, stacked, values)

    def _prove(self, leaves: list[_Leaf]) -> None:
        """Keep the leaves whose bound is proved to be above 0, and halve the others."""
        if not leaves:
            return
        packed = self._packed(leaves)
        packed = replace(packed, lower=self._exact.lower(packed, self._layout, sound=True))
        is_proved = packed.lower > 0
        proved = packed.of(is_proved.nonzero()[:, 0])
        self._row_bounds.scatter_reduce_(0, proved.row, proved.lower, "amin")
        if self._proved is not None:
            self._proved.append(proved)
            if sum(part.nbytes for part in self._proved) > self._memory:
                self._proved = None  # the answer matters more than its certificate
        for leaf, proof in zip(leaves, is_proved.tolist(), strict=True):
            if proof:
                self.open_share -= leaf.share
            elif leaf.unit >= 0:
                self._workers[0].queue += self.halves(leaf)
            else:
                self._unprovable.add(leaf.row)

    def _packed(self, leaves: list[_Leaf]) -> Leaves:
        """Return solved leaves with their choices, rounded."""
        device, layout, program = self._lower.device, self._layout, self._workers[0].program
        pairs = [program.choices(leaf.signs, leaf.solution) for leaf in leaves if leaf.solution is not None]
        slopes, multipliers = (torch.from_numpy(np.stack(part)).to(self._default) for part in zip(*pairs, strict=True))
        choices = self._default.repeat(len(leaves), 1)
        choices[:, layout.slope_columns], choices[:, layout.multiplier_columns] = slopes, multipliers
        signs = torch.from_numpy(np.stack([leaf.signs for leaf in leaves])).to(device)
        rows = torch.tensor([leaf.row for leaf in leaves], device=device)
        return layout.round_choices(Leaves(rows, signs, choices, self._lower.new_zeros(len(leaves))))


def _is_above_0(leaf: _Leaf) -> bool:
    return leaf.solution is not None and leaf.solution.value > 0


def _unit_to_split(leaf: _Leaf, solution: LeafSolution | None) -> int:
    """Return the unit whose distance from its ReLU costs the row most, any if there is no solution, -1 if none is left.

    solution: the leaf's.
    """
    is_free = leaf.signs == 0
    if not is_free.any():
        return -1
    cost = np.zeros(len(is_free)) if solution is None else solution.violation * np.abs(solution.arriving)
    return int(np.where(is_free, cost + _ANY_UNIT, -1).argmax())
