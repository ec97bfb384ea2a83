"""Pareto fronts of two-objective searches, and their hypervolumes."""

from dataclasses import dataclass
from itertools import combinations, groupby

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.common import names
from harness.common.terminal import with_plural

FRONTS = "fronts"
"""Column of rows that searches for two errors have chosen: the `Chosen` of each such search."""
FRONT, NETWORK, SEARCH = "front", "front of network", "search"
"""Columns of `winners_of`: the searched row, its network with all methods, and the search."""
ERRORS = [names.STANDARD_ERROR, names.CERTIFIED_ERROR]
_WORST = 100.0  # the corner that hypervolumes are measured from, in both errors
_SAMPLES, _LEVEL = 1000, 95
_FEWEST_SEEDS = 5  # for a bootstrap interval: that of two or three seeds is their range, whatever its level
_DIGITS = 9  # of errors in percent: so equal shares of images are equal numbers

Errors = NDArray[np.float64]


@dataclass(frozen=True)
class Front:
    """The winners of one row's search.

    errors: standard and certified, [winners, 2], means over seeds. ends: of the hypervolume's interval over resampled
    seeds or, of few seeds, of its range over them; None if there is one seed.
    """

    name: str
    errors: Errors
    ends: tuple[float, float] | None

    @property
    def text(self) -> str:
        """The name and the hypervolume with its interval or range, in percent."""
        text = f"{self.name} {hypervolume(self.errors):.2f} %"
        return text if self.ends is None else f"{text} ({self.ends[0]:.2f} to {self.ends[1]:.2f})"


def fronts_of(trials: pd.DataFrame) -> list[Front]:
    """Return a front for each row that was searched for two errors, those of the largest hypervolume first.

    trials: as `Section.trials` has them.
    """
    return _fronts_of(winners_of(trials))


def _fronts_of(winners: pd.DataFrame) -> list[Front]:
    if winners.empty:
        return []
    table = winners.pivot_table(index=[FRONT, "label"], columns="seed", values=ERRORS).dropna()
    errors = np.stack([table[name].to_numpy(dtype=float) for name in ERRORS], axis=2)  # [winners, seeds, 2]
    owners = table.index.get_level_values(0)
    parts = [(name, errors[owners == name]) for name in owners.unique()]
    fronts = [Front(name, own.mean(1), _ends(own)) for name, own in parts]
    return sorted(fronts, key=lambda each: hypervolume(each.errors), reverse=True)


def _ends(errors: Errors) -> tuple[float, float] | None:
    """Return what `Front.ends` has. errors: [winners, seeds, 2]."""
    count = errors.shape[1]
    if count == 1:
        return None
    draws, level = np.arange(count)[:, None], 100
    if count >= _FEWEST_SEEDS:
        draws, level = np.random.default_rng(0).integers(count, size=(_SAMPLES, count)), _LEVEL
    volumes = [hypervolume(errors[:, draw].mean(1)) for draw in draws]
    low, high = np.percentile(volumes, [50 - level / 2, 50 + level / 2])
    return float(low), float(high)


def winners_of(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that searches for two errors have chosen, once for each search, with the columns above."""
    if FRONTS not in trials:
        return trials.iloc[:0]
    winners = trials.explode(FRONTS).dropna(subset=[FRONTS])
    columns = {FRONT: "front", NETWORK: "network", SEARCH: "search"}
    return winners.assign(
        **{name: [getattr(each, attribute) or None for each in winners[FRONTS]] for name, attribute in columns.items()}
    )


def front_sentences(trials: pd.DataFrame) -> list[str]:
    """Return sentences on a section's fronts: hypervolumes, then where one network has less certified error."""
    winners = winners_of(trials)
    if winners.empty:
        return []
    fronts, count = _fronts_of(winners), winners["seed"].nunique()
    interval = f"lowest and highest of {count} seeds" if count > 1 else "one seed, no interval"
    if count >= _FEWEST_SEEDS:
        interval = f"{_LEVEL} % interval, {_SAMPLES} resamples of {count} seeds"
    listed = "; ".join(each.text for each in fronts)
    what = "hypervolume of each front, the percentage of all pairs of errors that it dominates"
    sentences = [f"{what} ({interval}): {listed}"] if fronts else []
    incomplete = winners.groupby([FRONT, "label"]).ngroups - sum(len(each.errors) for each in fronts)
    if incomplete:
        return [*sentences, f"left out of fronts, without a seed that others have: {with_plural(incomplete, 'winner')}"]
    return [*sentences, *_network_sentences(winners)]


def _network_sentences(winners: pd.DataFrame) -> list[str]:
    """Return a sentence on which network is lower where; none with one seed, one network or several searches.

    winners: with all seeds each. Networks of two searches had two budgets.
    """
    if winners["seed"].nunique() == 1 or winners[SEARCH].nunique() > 1:
        return []
    pairs = combinations(winners[NETWORK].dropna().unique(), 2)
    compared = "; ".join(_comparison(winners, *pair) for pair in pairs)
    by = "lowest certified error, by any method, at a standard error of at most s"
    return [f"{by}: {compared}"] if compared else []


def _comparison(winners: pd.DataFrame, one: str, other: str) -> str:
    """Say for which s one of two networks has the lower certified error with each seed, where both have a winner."""
    rows = [winners[winners[NETWORK] == name].groupby("seed")[ERRORS] for name in (one, other)]
    points = [[errors.to_numpy(dtype=float).round(_DIGITS) for _, errors in seeds] for seeds in rows]
    steps = np.unique(np.concatenate([errors[:, 0] for seeds in points for errors in seeds]))
    first, second = (np.stack([_lowest(errors, steps) for errors in seeds]) for seeds in points)  # [seeds, steps]
    have_both = np.isfinite(first + second)
    lower = _ranges(np.all(have_both & (first < second), axis=0), steps)
    higher = _ranges(np.all(have_both & (second < first), axis=0), steps)
    return f"{one} lower than {other} with each of {len(first)} seeds for {lower}, higher for {higher}"


def _lowest(errors: Errors, steps: Errors) -> Errors:
    """Return the lowest certified error [K] of errors [N, 2] up to each standard error of steps [K]; inf for none."""
    lowest: Errors = np.where(errors[:, :1] <= steps, errors[:, 1:], np.inf).min(0)
    return lowest


def _ranges(is_true: NDArray[np.bool_], steps: Errors) -> str:
    """Return the standard errors where something is true, as text; between two steps it is as at the first."""
    ends = [*(f"to {step:.1f} %" for step in steps[1:]), "% on"]
    runs = [list(run) for value, run in groupby(range(len(steps)), is_true.__getitem__) if value]
    return " and ".join(f"s from {steps[run[0]]:.1f} {ends[run[-1]]}" for run in runs) or "no s"


def front_of(errors: Errors) -> NDArray[np.intp]:
    """Return the indices of the points that no other one dominates, by the first error; of equal points, one.

    errors: [N, 2].
    """
    order = np.lexsort(errors.T[::-1])
    second = errors[order, 1]
    front: NDArray[np.intp] = order[second < np.r_[np.inf, np.minimum.accumulate(second)[:-1]]]
    return front


def hypervolume(errors: Errors) -> float:
    """Return the percentage of the pairs of errors, each from 0 to 100 %, that a point is no worse than in both.

    errors: [N, 2].
    """
    standard, certified = errors[front_of(errors)].T
    return float(-np.diff(certified, prepend=_WORST) @ (_WORST - standard)) * 100 / _WORST**2
