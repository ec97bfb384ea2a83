"""Linear programs by HiGHS that keep their basis, with the multipliers of their rows; of an empty one, its ray."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cerdeq.deadline import check, seconds_left

_NONE, _ANY = 0, 2  # scaling: it takes longer, and is seldom needed
_SMALLEST_RAY = 1e-9  # largest entry of a ray that shows nothing


@dataclass(frozen=True)
class Solution:
    """The result of a linear program; nothing is proved.

    x: [n], where the minimum is; of an empty program, some point of the box. value: cost . x; of an empty program
    infinity. multipliers: [m], of the rows. slopes: [n], the cost less the rows times their multipliers. ray: of an
    empty program what multipliers [m] of the rows show, that the least value of -multipliers . rows . x over the box
    exceeds what the rows allow by this number; else 0.
    """

    x: np.ndarray
    value: float
    multipliers: np.ndarray
    slopes: np.ndarray
    ray: float = 0.0

    @property
    def is_empty(self) -> bool:
        """True if no x meets the rows."""
        return self.ray > 0


class LinearProgram:
    """Minimise cost . x over a box of x [n] with low <= rows . x <= high; each solution starts from the one before."""

    def __init__(self, rows: Any, low: np.ndarray, high: np.ndarray, ends: tuple[np.ndarray, np.ndarray]):
        """rows: [m, n], dense or sparse. low, high: [m]. ends: [n] each, of the box."""
        import highspy  # imported here, since bounds must work without it and scipy
        from scipy import sparse

        self._rows, self._limits = sparse.csr_matrix(rows), (low, high)
        self._ends = ends[0].astype(float), ends[1].astype(float)
        self._status, self._solver = highspy.HighsModelStatus, highspy.Highs()
        self._solver.silent()
        self._solver.setOptionValue("presolve", "off")
        self._solver.setOptionValue("solver", "simplex")
        self._solver.setOptionValue("threads", 1)
        program = highspy.HighsLp()
        program.num_row_, program.num_col_ = self._rows.shape
        program.col_cost_ = np.zeros(program.num_col_)
        program.col_lower_, program.col_upper_ = self._ends
        program.row_lower_, program.row_upper_ = self._limits
        program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        program.a_matrix_.start_, program.a_matrix_.index_ = self._rows.indptr, self._rows.indices
        program.a_matrix_.value_ = self._rows.data
        self._solver.passModel(program)

    def set_cost(self, cost: np.ndarray) -> None:
        """Set the cost [n]."""
        self._solver.changeColsCost(len(cost), np.arange(len(cost), dtype=np.int32), cost)

    def set_ends(self, columns: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        """Set the ends of the box at these columns, int32 [k]."""
        self._ends[0][columns], self._ends[1][columns] = low, high
        self._solver.changeColsBounds(len(columns), columns, low, high)

    def solve(self) -> Solution | None:
        """Return the solution, None if there is none in time. Raises DeadlineError if the deadline has passed."""
        for scaling in (_NONE, _ANY):  # the second time from the start, if rounding prevents the first solution
            check()
            self._solver.setOptionValue("simplex_scale_strategy", scaling)
            self._solver.setOptionValue("time_limit", self._solver.getRunTime() + max(seconds_left(), 0.01))
            self._solver.run()
            status, solution = self._solver.getModelStatus(), self._solver.getSolution()
            if status == self._status.kOptimal:
                x, multipliers, slopes = map(np.array, (solution.col_value, solution.row_dual, solution.col_dual))
                return Solution(x, self._solver.getInfo().objective_function_value, multipliers, slopes)
            ray = self._shown_empty(np.array(solution.col_value)) if status == self._status.kInfeasible else None
            if ray is not None:
                return ray
            self._solver.clearSolver()
        return None

    def _shown_empty(self, x: np.ndarray) -> Solution | None:
        """Return the ray of an empty program."""
        _, exists, ray = self._solver.getDualRay()  # type: ignore[attr-defined]  # stubs lack it
        if not exists or not (size := np.abs(ray).max(initial=0)) > _SMALLEST_RAY:
            return None
        low, high = self._limits
        ray = ray / size
        for multipliers in (ray, -ray):
            multipliers = np.where((multipliers > 0) & ~np.isfinite(low), 0, multipliers)
            multipliers = np.where((multipliers < 0) & ~np.isfinite(high), 0, multipliers)
            slopes = -(multipliers @ self._rows)
            with np.errstate(invalid="ignore"):  # 0 times infinity, where the other is taken
                of_rows = np.where(multipliers > 0, multipliers * low, np.where(multipliers < 0, multipliers * high, 0))
                of_box = np.where(slopes > 0, slopes * self._ends[0], np.where(slopes < 0, slopes * self._ends[1], 0))
            if (shown := of_rows.sum() + of_box[np.abs(slopes) > _SMALLEST_RAY].sum()) > 0:
                return Solution(x, np.inf, multipliers, slopes, float(shown))
        return None


def minimise(cost: np.ndarray, rows: np.ndarray, limits: np.ndarray, ends: np.ndarray) -> Solution | None:
    """Minimise cost . x over a box of x [n] with rows [m, n] . x = limits [m]; None if that is not solved in time.

    ends: [n, 2], of the box. Raises DeadlineError if the deadline has passed.
    """
    program = LinearProgram(rows, limits, limits, (ends[:, 0], ends[:, 1]))
    program.set_cost(cost)
    return program.solve()
