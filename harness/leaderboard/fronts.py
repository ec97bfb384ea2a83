"""Pareto fronts of two-objective searches, and their hypervolumes."""

from dataclasses import dataclass
from itertools import groupby, permutations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.common import names

FRONT, NETWORK = "front", "front of network"
"""Columns of a row that a search has chosen: the searched row, and its network with all methods."""
ERRORS = [names.STANDARD_ERROR, names.CERTIFIED_ERROR]
_WORST = 100.0  # the corner that hypervolumes are measured from, in both errors
_SAMPLES, _LEVEL = 1000, 95

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


def fronts_of(trials: pd.DataFrame, by: str = FRONT) -> list[Front]:
    """Return the fronts of a section's networks, those of the largest hypervolume first; none without such searches.

    trials: as `Section.trials` has them. by: FRONT, one for each searched row, or NETWORK, one for each network.
    """
    if FRONT not in trials or trials[FRONT].isna().all():
        return []
    chosen = trials.dropna(subset=[FRONT])
    table = chosen.pivot_table(index=[by, "label"], columns="seed", values=ERRORS).dropna()
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
    if not (fronts := fronts_of(trials)):
        return []
    count = trials.dropna(subset=[FRONT])["seed"].nunique()
    interval = f"{_LEVEL} % interval, {_SAMPLES} resamples of {count} seeds" if count > 1 else "one seed, no interval"
    listed = "; ".join(each.text for each in fronts)
    what = "hypervolume of each front, the percentage of all pairs of errors that it dominates"
    return [f"{what} ({interval}): {listed}", *_network_sentences(fronts_of(trials, by=NETWORK))]


def _network_sentences(fronts: list[Front]) -> list[str]:
    """Say for each network where its front, of all methods, is below each other one's; none with one seed."""
    needed = 50 + _LEVEL / 2  # % of the resamples: an end of a two-sided interval
    sentences = []
    for one, other in permutations([each for each in fronts if len(each.samples)], 2):
        ends = np.concatenate([front.errors[front_of(front.errors), 0] for front in (one, other)])
        standard = np.arange(np.floor(10 * ends.min()), np.ceil(10 * ends.max()) + 1) / 10
        ours, theirs = (np.stack([_lowest(errors, standard) for errors in front.samples]) for front in (one, other))
        is_below = 100 * (ours < theirs).mean(0) >= needed
        runs = [list(run) for below, run in groupby(range(len(standard)), is_below.__getitem__) if below]
        where = ", ".join(f"{standard[run[0]]:.1f} to {standard[run[-1]]:.1f} %" for run in runs)
        at = f"at standard errors of {where}" if where else "at no standard error"
        sentences.append(f"with all methods, {one.name} is below {other.name} {at}, in {needed:.1f} % of the resamples")
    return sentences


def _lowest(errors: Errors, standard: Errors) -> Errors:
    """Return the lowest certified error [K] of the points of errors [N, 2] up to each standard error [K]."""
    reached: Errors = np.where(errors[:, :1] <= standard, errors[:, 1:], _WORST).min(0)
    return reached


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
