"""Pareto fronts of two-objective searches, and their hypervolumes."""

from dataclasses import dataclass
from itertools import combinations, groupby

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.common import names
from harness.common.terminal import with_plural

FRONT, NETWORK = "front", "front of network"
"""Columns of a row that a search has chosen: the searched row, and its network with all methods."""
ERRORS = [names.STANDARD_ERROR, names.CERTIFIED_ERROR]
_WORST = 100.0  # the corner that hypervolumes are measured from, in both errors
_SAMPLES, _LEVEL = 1000, 95
_DIGITS = 9  # of errors in percent: so equal shares of images are equal numbers

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
    def text(self) -> str:
        """The name and the hypervolume with its interval, in percent."""
        volume = hypervolume(self.errors)
        if not len(self.samples):
            return f"{self.name} {volume:.2f} %"
        ends = np.percentile([hypervolume(each) for each in self.samples], [50 - _LEVEL / 2, 50 + _LEVEL / 2])
        return f"{self.name} {volume:.2f} % ({ends[0]:.2f} to {ends[1]:.2f})"


def fronts_of(trials: pd.DataFrame) -> list[Front]:
    """Return the fronts of a section's networks, those of the largest hypervolume first; none without such searches.

    trials: as `Section.trials` has them.
    """
    if FRONT not in trials or trials[FRONT].isna().all():
        return []
    chosen = trials.dropna(subset=[FRONT])
    table = chosen.pivot_table(index=[FRONT, "label"], columns="seed", values=ERRORS).dropna()
    count = chosen["seed"].nunique()
    errors = np.stack([table[name].to_numpy(dtype=float) for name in ERRORS], axis=2)  # [winners, seeds, 2]
    draws = np.random.default_rng(0).integers(count, size=(_SAMPLES if count > 1 else 0, count))
    samples = np.stack([errors[:, draw].mean(1) for draw in draws]) if len(draws) else np.zeros((0, len(errors), 2))
    owners = table.index.get_level_values(0)
    parts = [(name, (owners == name).nonzero()[0]) for name in owners.unique()]
    fronts = [Front(name, errors[own].mean(1), samples[:, own]) for name, own in parts]
    return sorted(fronts, key=lambda each: hypervolume(each.errors), reverse=True)


def front_sentences(trials: pd.DataFrame) -> list[str]:
    """Return sentences on a section's fronts: their hypervolumes, then where one network's is below another's."""
    if FRONT not in trials or (chosen := trials.dropna(subset=[FRONT])).empty:
        return []
    fronts, count = fronts_of(chosen), chosen["seed"].nunique()
    interval = f"{_LEVEL} % interval, {_SAMPLES} resamples of {count} seeds" if count > 1 else "one seed, no interval"
    listed = "; ".join(each.text for each in fronts)
    what = "hypervolume of each front, the percentage of all pairs of errors that it dominates"
    sentences = [f"{what} ({interval}): {listed}"] if fronts else []
    left_out = chosen.groupby([FRONT, "label"]).ngroups - sum(len(each.errors) for each in fronts)
    if left_out:
        return [*sentences, f"left out of fronts, without a seed that others have: {with_plural(left_out, 'winner')}"]
    if count == 1 or chosen[FRONT].str.rpartition(" by ")[2].nunique() > 1:  # networks of two searches had two budgets
        return sentences
    compared = [_comparison(chosen, *pair) for pair in combinations(chosen[NETWORK].dropna().unique(), 2)]
    by = "lowest certified error, by any method, at a standard error of at most s"
    return [*sentences, f"{by}: {'; '.join(compared)}"] if compared else sentences


def _comparison(chosen: pd.DataFrame, one: str, other: str) -> str:
    """Say for which s one of two networks has the lower certified error with each seed, where both have a winner."""
    rows = [chosen[chosen[NETWORK] == name].groupby("seed")[ERRORS] for name in (one, other)]
    points = [[errors.to_numpy(dtype=float).round(_DIGITS) for _, errors in seeds] for seeds in rows]
    steps = np.unique(np.concatenate([errors[:, 0] for seeds in points for errors in seeds]))
    ours, theirs = (np.stack([_lowest(errors, steps) for errors in seeds]) for seeds in points)  # [seeds, steps]
    have_both = np.isfinite(ours + theirs)
    lower = _ranges(np.all(have_both & (ours < theirs), axis=0), steps)
    higher = _ranges(np.all(have_both & (theirs < ours), axis=0), steps)
    return f"{one} lower than {other} with each of {len(ours)} seeds for {lower}, higher for {higher}"


def _lowest(errors: Errors, steps: Errors) -> Errors:
    """Return the lowest certified error [K] of errors [N, 2] up to each standard error of steps [K]; inf for none."""
    lowest: Errors = np.where(errors[:, :1] <= steps, errors[:, 1:], np.inf).min(0)
    return lowest


def _ranges(holds: NDArray[np.bool_], steps: Errors) -> str:
    """Return the standard errors at which something holds, as text; between two steps it is as at the first."""
    ends = [*(f"{step:.1f} %" for step in steps[1:]), ""]
    runs = [list(run) for value, run in groupby(range(len(steps)), holds.__getitem__) if value]
    texts = [f"s from {steps[run[0]]:.1f}" + (f" to {end}" if (end := ends[run[-1]]) else " % on") for run in runs]
    return " and ".join(texts) or "no s"


def front_of(errors: Errors) -> NDArray[np.intp]:
    """Return the numbers of the points that no other one dominates, by the first error; of equal points, one.

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
