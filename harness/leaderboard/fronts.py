"""Pareto fronts of two-objective searches: their hypervolumes, and where one network's front is the better one."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.common import names

FRONT, NETWORK = "front", "front of network"
"""Columns of a row that a search has chosen: the searched row, and its network with all methods."""
ERRORS = [names.STANDARD_ERROR, names.CERTIFIED_ERROR]
_WORST = 100.0  # the corner that hypervolumes are measured from, in both errors
_SAMPLES, _LEVEL = 1000, 95
_GRID = np.arange(0, _WORST + 0.05, 0.1)  # standard errors at which fronts are compared

Errors = NDArray[np.float64]


@dataclass(frozen=True)
class Front:
    """The winners of one search, or of several.

    errors: standard and certified, [winners, 2], means over seeds. samples: the same of resampled seeds, [samples,
    winners, 2]; none if there is one seed.
    """

    name: str
    errors: Errors
    samples: Errors

    @property
    def is_dominated(self) -> NDArray[np.bool_]:
        """For each winner whether another one is better in one error and not worse in the other."""
        each, others = self.errors[:, None], self.errors
        dominated: NDArray[np.bool_] = np.any((each >= others).all(2) & (each > others).any(2), axis=1)
        return dominated

    @property
    def text(self) -> str:
        """The name and the hypervolume with its interval, in percent."""
        volume = hypervolume(self.errors)
        if not len(self.samples):
            return f"{self.name} {volume:.2f} %"
        ends = np.percentile([hypervolume(each) for each in self.samples], [50 - _LEVEL / 2, 50 + _LEVEL / 2])
        return f"{self.name} {volume:.2f} % ({ends[0]:.2f} to {ends[1]:.2f})"


def fronts_of(trials: pd.DataFrame, by: str = FRONT) -> list[Front]:
    """Return the fronts of a section's networks, those of the largest hypervolume first; none without such searches.

    trials: as `Section.trials` has them. by: FRONT, or NETWORK for the winners of all methods together.
    """
    if by not in trials or trials[by].isna().all():
        return []
    chosen = trials.dropna(subset=[by])
    table = chosen.pivot_table(index=[by, "label"], columns="seed", values=ERRORS).dropna()
    seeds = sorted(chosen["seed"].unique())
    errors = np.stack([table[name].to_numpy(dtype=float) for name in ERRORS], axis=2)  # [winners, seeds, 2]
    draws = np.random.default_rng(0).integers(len(seeds), size=(_SAMPLES if len(seeds) > 1 else 0, len(seeds)))
    samples = np.stack([errors[:, draw].mean(1) for draw in draws]) if len(draws) else np.zeros((0, len(errors), 2))
    owners = table.index.get_level_values(0)
    parts = [(name, (owners == name).nonzero()[0]) for name in owners.unique()]
    fronts = [Front(name, errors[own].mean(1), samples[:, own]) for name, own in parts]
    return sorted(fronts, key=lambda each: hypervolume(each.errors), reverse=True)


def front_sentences(trials: pd.DataFrame) -> list[str]:
    """Return sentences on the fronts of a section: their hypervolumes, and which network's is better where."""
    if not (fronts := fronts_of(trials)):
        return []
    count = trials["seed"].nunique()
    interval = f"{_LEVEL} % interval, {_SAMPLES} resamples of {count} seeds" if count > 1 else "one seed, no interval"
    listed = "; ".join(each.text for each in fronts)
    lines = [
        f"fronts by hypervolume, the share of all pairs of errors that a front is better than ({interval}): {listed}"
    ]
    if count > 1:
        lines += [_compare(one, other) for one, other in combinations(fronts_of(trials, NETWORK), 2)]
    return lines


def hypervolume(errors: Errors) -> float:
    """Return the percentage of the pairs of errors, each from 0 to 100 %, that a point is no worse than in both.

    errors: [N, 2].
    """
    volume, lowest = 0.0, _WORST
    for standard, certified in errors[np.lexsort(errors.T[::-1])]:
        volume += max(0.0, lowest - certified) * (_WORST - standard)
        lowest = min(lowest, certified)
    return 100 * volume / _WORST**2


def _compare(one: Front, other: Front) -> str:
    """Return where one network's front is better than another's in most samples of seeds."""
    differences = _lowest(one.samples) - _lowest(other.samples)
    parts = []
    for better, worse, sign in ((one, other, 1), (other, one, -1)):
        if ranges := _ranges((sign * differences < 0).mean(0) >= _LEVEL / 100):
            parts.append(f"{better.name} is better than {worse.name} at standard errors of {ranges}")
    where = f"in {_LEVEL} % of the resamples"
    return (
        f"{' and '.join(parts)}, {where}" if parts else f"{one.name} and {other.name}: neither front is better, {where}"
    )


def _lowest(samples: Errors) -> Errors:
    """Return the lowest certified error at no more than each standard error of the grid, [samples, grid]."""
    reached = samples[:, :, :1] <= _GRID
    lowest: Errors = np.where(reached, samples[:, :, 1:], _WORST).min(1)
    return lowest


def _ranges(holds: NDArray[np.bool_]) -> str:
    """Return the ranges of the grid where something holds, as text."""
    edges = np.flatnonzero(np.diff(np.r_[False, holds, False].astype(int))).reshape(-1, 2)
    return ", ".join(
        f"{_GRID[first]:.1f} % or more" if after == len(_GRID) else f"{_GRID[first]:.1f} to {_GRID[after - 1]:.1f} %"
        for first, after in edges
    )
