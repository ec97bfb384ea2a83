"""Give turns to the searches of one image until one of them decides it; each round is longer than the one before.

The boxes of hidden units are tightened after each round, and the next one starts again over them. Linear programs of
leaves, over the same boxes, get a share of the time between, and all of it while their end is near: they close more
than the ascent where programs are small.
"""

import math
import time
from dataclasses import replace

from cerdeq.branch.hidden_boxes import HiddenBounds
from cerdeq.branch.leaf_search import LeafSearch
from cerdeq.branch.program_search import ProgramSearch
from cerdeq.branch.search import CERTIFIED, TIMEOUT, UNKNOWN, Budget, Decision, Problem
from cerdeq.deadline import DeadlineError, seconds_left, stop_at

_FEWEST_LEAVES = 64  # of the search over the first boxes: programs close most of what is left then
_FIRST_TURN = 1.0  # leaves of the first search for each row of hidden units, if these are more
_TURN = 0.5  # leaves of each search for each leaf by which hidden boxes were tightened before it
_PROGRAMS_SHARE, _SHORTEST = 0.25, 0.05  # of a round's seconds, for linear programs; fewest seconds
_FIRST_PROGRAMS = 1.0  # seconds that the first turn of programs has at least
_FIRST_LEAVES, _GROWTH = 16, 4  # of a hidden row: at first, and how many times more in each round


def decide(problem: Problem, budget: Budget) -> Decision:
    """Decide whether all rows of the spec are positive over the whole box."""
    if not len(problem.rows):
        return Decision(CERTIFIED, problem.lower)
    leaves, programs, leaves_each, hidden = LeafSearch(problem), _ProgramTurns(), _FIRST_LEAVES, HiddenBounds(problem)
    turn, can_tighten = _FIRST_TURN * max(_FEWEST_LEAVES, hidden.row_count), hidden.row_count > 0
    while True:
        began = time.monotonic()
        decision = leaves.advance(budget.turn(turn))
        is_over = decision.status == UNKNOWN and not can_tighten
        if not _is_last(decision, budget):
            decision = programs.run(problem, budget, math.inf if is_over else time.monotonic() - began)
        if is_over or _is_last(decision, budget):
            break
        turn, before = 2 * turn, budget.used
        if can_tighten:
            tight = hidden.tighten(leaves_each, budget)
            leaves_each, can_tighten = _GROWTH * leaves_each, budget.used > before
            turn = max(turn, _TURN * (budget.used - before))
            if can_tighten:  # else nothing is left to split in hidden rows
                problem, leaves = tight, LeafSearch(tight)
    if decision.status == CERTIFIED and decision.certificate:
        decision = replace(decision, certificate=decision.certificate | hidden.certificate())
    return decision


def _is_last(decision: Decision, budget: Budget) -> bool:
    """Return whether no other search follows."""
    return decision.status not in (TIMEOUT, UNKNOWN) or budget.is_exhausted


class _ProgramTurns:
    """The turns of a `ProgramSearch`, which is made before the first one, and anew for another problem."""

    def __init__(self) -> None:
        self._began, self._seconds, self._are_slow = time.monotonic(), 0.0, False
        self._problem: Problem | None = None
        self._search: ProgramSearch | None = None

    def run(self, problem: Problem, budget: Budget, seconds: float) -> Decision:
        """Return the decision after a share of these seconds, or at the end if that is near.

        Without a deadline, they run at the end alone: turns by the clock would make limited branches depend on it. Else
        turns wait until all before them took no more than their share. If the first one takes longer than all other
        searches did, and a second, the programs are too large, and no other follows: the solution of the first ones may
        take long.
        """
        if problem is not self._problem:  # tighter boxes close more than what is given up
            self._problem, self._search, self._last = problem, None, Decision(TIMEOUT, problem.lower)
        others = time.monotonic() - self._began - self._seconds
        waits = self._seconds > _PROGRAMS_SHARE * others or self._are_slow or seconds_left() == math.inf
        if self._last.status != TIMEOUT or (waits and seconds < math.inf):
            return self._last
        began = time.monotonic()
        limit = max(others, _FIRST_PROGRAMS) if self._search is None and seconds < math.inf else math.inf
        try:
            self._run_turns(problem, budget, max(_PROGRAMS_SHARE * seconds, _SHORTEST), began + limit)
        except DeadlineError:
            if seconds_left() <= 0:
                raise
            self._search, self._are_slow = None, True  # it lacks the leaves that it was solving
        self._seconds += time.monotonic() - began
        return self._last

    def _run_turns(self, problem: Problem, budget: Budget, seconds: float, deadline: float) -> None:
        """Run the programs for these seconds, and go on while the end is near. deadline: of the first turn.

        It is near if what is left takes no longer than all searches have taken, at the pace of the last turn: that at
        most doubles the time.
        """
        to_go = 0.0
        while to_go <= min(seconds_left(), time.monotonic() - self._began):
            with stop_at(deadline):
                self._search, deadline = self._search or ProgramSearch(problem), math.inf
                began, before = time.monotonic(), self._search.open_share
                self._last = self._search.advance(budget.turn(seconds=seconds))
            if self._last.status != TIMEOUT or budget.is_exhausted:
                break
            closed = before - self._search.open_share
            to_go = (time.monotonic() - began) * self._search.open_share / closed if closed > 0 else math.inf
