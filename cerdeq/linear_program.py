"""Linear programs over a box by HiGHS, with the multipliers of their rows; of an empty one, those that show it."""

from dataclasses import dataclass

import numpy as np

from cerdeq.deadline import check, seconds_left

_SOLVED, _INFEASIBLE = 0, 2  # of linprog


@dataclass(frozen=True)
class Solution:
    """The result of a linear program; nothing is proved.

    x: [n], where the minimum is; of an empty program, where the rows are violated least. multipliers: [m], of the rows.
    violation: of the rows at x, 0 if the program is not empty.
    """

    x: np.ndarray
    multipliers: np.ndarray
    violation: float


def minimise(
    cost: np.ndarray, rows: np.ndarray, limits: np.ndarray, ends: np.ndarray, *, is_equation: bool = False
) -> Solution | None:
    """Minimise cost . x over a box of x [n] with rows [m, n] . x <= limits [m]; None if that is not solved in time.

    ends: [n, 2], of the box. is_equation: whether rows . x = limits. Raises DeadlineError if the deadline has passed.
    """
    from scipy.optimize import linprog  # imported here, since bounds must work without scipy

    check()
    options, constraints = {"time_limit": max(seconds_left(), 0.01)}, {"A_ub": rows, "b_ub": limits}
    if is_equation:
        constraints = {"A_eq": rows, "b_eq": limits}
    result = linprog(cost, **constraints, bounds=ends, method="highs", options=options)
    if result.status == _SOLVED:
        return Solution(result.x, -(result.eqlin if is_equation else result.ineqlin).marginals, 0.0)
    if result.status != _INFEASIBLE:
        return None
    if is_equation:
        rows, limits = np.vstack([rows, -rows]), np.concatenate([limits, -limits])
    wider = np.hstack([rows, -np.ones((len(rows), 1))])  # one more variable: the largest violation
    last = np.eye(1, len(cost) + 1, len(cost))[0]
    result = linprog(
        last, A_ub=wider, b_ub=limits, bounds=np.vstack([ends, [0, np.inf]]), method="highs", options=options
    )
    if result.status != _SOLVED or not result.fun > 0:
        return None
    multipliers = -result.ineqlin.marginals
    if is_equation:
        multipliers = np.subtract(*np.split(multipliers, 2))
    return Solution(result.x[:-1], multipliers, result.fun)
