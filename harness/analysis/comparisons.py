"""Paired comparisons of a leaderboard's rows: the same test images, the same seeds."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.typing import SeriesGroupBy
from scipy import special  # scipy.stats takes seconds to import

from harness.analysis.leaderboard import Leaderboard, Section
from harness.analysis.trials import NOT_COUNTED
from harness.command_line import select_by_pattern
from harness.config.settings import EvaluationSettings
from harness.errors import InputError, SettingError
from harness.storage import folder, names

ALL = "all"  # the column `seed` of the line for all seeds together
METRICS = {  # the verdicts that count as errors
    "certified": (names.MISCLASSIFIED, names.FALSIFIED, *names.UNDECIDED),
    "attack": (names.MISCLASSIFIED, names.FALSIFIED),
    "standard": (names.MISCLASSIFIED,),
}
_IMAGE = [names.INDEX, names.LABEL]
_COLUMNS = [
    "section", "metric", "row", "other", "seed", "images", "row_alone", "other_alone", "difference", "difference_std",
    "mcnemar_p", "mcnemar_holm", "t_p", "t_holm",
]  # fmt: skip


def compare(
    leaderboard: Leaderboard,
    metric: str = "certified",
    baseline: str | None = None,
    heading: str | None = None,
    only: Sequence[str] = (),
) -> tuple[pd.DataFrame, list[str]]:
    """Return the comparisons of rows, a line for all seeds and one for each seed, and what was left out.

    Without a baseline every row is compared with every other of the same method, else each row with the baseline.
    heading: of the section whose rows are compared; by default every section.
    only: patterns of the labels of rows that are compared.
    Raises InputError where there is nothing to compare.
    """
    sections = [each for each in leaderboard.sections if not each.is_stale and heading in (None, each.heading)]
    labels = list(dict.fromkeys(label for section in sections for label in section.own["label"]))
    if not labels:
        raise InputError("nothing to compare: no trial has finished")
    if baseline is not None and baseline not in labels:
        raise SettingError("--baseline", baseline, f"a row of the leaderboard: {'; '.join(labels)}")
    selected = select_by_pattern("--only", only, {label: (label,) for label in labels}) if only else labels
    counts, notes = list[dict[str, Any]](), list[str]()
    answers_of = cache(partial(_read_answers, errors=METRICS[metric]))  # each file is read once
    for section in sections:
        for pair in _pairs(section, selected, baseline):
            try:
                counts += _counts(leaderboard, section, pair, answers_of, notes)
            except InputError as error:
                notes.append(f"{' against '.join(pair)}: {error}")
    notes = list(dict.fromkeys(notes))
    not_counted = leaderboard.trials[leaderboard.trials["state"] == NOT_COUNTED]
    faulty = [f"{path}: {why}" for path, why in not_counted[["trial_dir", "problem"]].values]
    if not counts:
        why = notes or [f"no two of these rows have one training method; rows for --baseline: {'; '.join(labels)}"]
        raise InputError("\n".join(["nothing to compare", *why, *faulty]))
    return paired_tests(pd.DataFrame(counts).assign(metric=metric)), notes + faulty


def _pairs(section: Section, selected: list[str], baseline: str | None) -> list[tuple[str, str]]:
    methods = {label: method for label, method in section.own[["label", "method"]].to_numpy() if label in selected}
    if baseline is None:
        return [(a, b) for a, b in combinations(methods, 2) if methods[a] == methods[b]]
    return [(label, baseline) for label in methods if label != baseline and baseline in set(section.own["label"])]


class _Answers(NamedTuple):
    """A trial's images, by number and label [N, 2], and on which of them it is right [N]."""

    images: np.ndarray
    right: np.ndarray


def _read_answers(trial_dir: Path, errors: tuple[str, ...]) -> _Answers:
    """Raises DamagedFileError."""
    verdicts = folder.read_verdicts(trial_dir, [*_IMAGE, names.VERDICT]).sort_values(_IMAGE)
    return _Answers(verdicts[_IMAGE].to_numpy(), ~verdicts[names.VERDICT].isin(errors).to_numpy())


def _counts(
    leaderboard: Leaderboard,
    section: Section,
    pair: tuple[str, str],
    answers_of: Callable[[Path], _Answers],
    notes: list[str],
) -> list[dict[str, Any]]:
    """Return for each common seed on how many images one row alone is right. Raises InputError."""
    row, other = (section.own[section.own["label"] == label].iloc[0] for label in pair)
    if differing := _evaluated_differently(row, other):
        raise InputError(f"not evaluated alike: {differing}")
    first, second = (leaderboard.trial_dirs[each.name] for each in (row, other))
    notes += _missing_seeds(pair[0], first, pair[1], second) + _missing_seeds(pair[1], second, pair[0], first)
    columns: dict[str, Any] = {"section": section.heading, "row": pair[0], "other": pair[1]}
    counts = []
    for seed in sorted(set(first) & set(second)):
        mine, theirs = answers_of(first[seed]), answers_of(second[seed])
        if not np.array_equal(mine.images, theirs.images):
            raise InputError(f"{first[seed]} and {second[seed]} are evaluated on different images")
        row_alone, other_alone = mine.right & ~theirs.right, theirs.right & ~mine.right
        alone = {"row_alone": int(row_alone.sum()), "other_alone": int(other_alone.sum())}
        counts.append(columns | {"seed": seed, "images": len(mine.right)} | alone)
    return counts


def _evaluated_differently(row: pd.Series, other: pd.Series) -> str:
    """Return the settings of the evaluation in which the two rows differ."""
    settings = [f"evaluation.{field.name}" for field in fields(EvaluationSettings)]
    pairs = {name: (str(row[name]), str(other[name])) for name in ["fingerprint", "validation_images", *settings]}
    return ", ".join(f"{name} {a} and {b}" for name, (a, b) in pairs.items() if a != b)


def _missing_seeds(row: str, mine: dict[int, Path], other: str, theirs: dict[int, Path]) -> list[str]:
    missing = ", ".join(map(str, sorted(set(theirs) - set(mine))))
    return [f"seed {missing} of {other}, which {row} lacks"] if missing else []


def paired_tests(counts: pd.DataFrame) -> pd.DataFrame:
    """Return of each pair of rows a line for all seeds together, then one for each seed, with their p values.

    counts: a row for each pair and seed: section, metric, row, other, seed, images, row_alone, other_alone.
    """
    each = counts.assign(difference=100 * (counts["other_alone"] - counts["row_alone"]) / counts["images"])
    pairs = each.groupby(["section", "metric", "row", "other"], sort=False)
    together = pairs[["images", "row_alone", "other_alone"]].sum()
    points = pairs["difference"]
    together["difference"], together["difference_std"], together["t_p"] = points.mean(), points.std(), t_test(points)
    together = together.reset_index().assign(seed=ALL, pair=range(len(together)))
    lines = pd.concat([together, each.assign(pair=pairs.ngroup())])
    lines = lines.sort_values("pair", kind="stable", ignore_index=True)
    lines["mcnemar_p"] = mcnemar(lines["row_alone"].to_numpy(), lines["other_alone"].to_numpy())
    for test in ("mcnemar", "t"):
        lines[f"{test}_holm"] = holm(lines.loc[lines["seed"] == ALL, f"{test}_p"])
    return lines[_COLUMNS]


def mcnemar(row_alone: np.ndarray, other_alone: np.ndarray) -> np.ndarray:
    """Return McNemar's exact two-sided p values from the numbers of images that one row alone is right on."""
    return np.minimum(1.0, 2 * special.bdtr(np.minimum(row_alone, other_alone), row_alone + other_alone, 0.5))


def t_test(differences: SeriesGroupBy) -> pd.Series:
    """Return each group's two-sided p value of the mean being 0.

    NaN for one difference and for several that are the same; 1 where all are 0.
    """
    mean, count = differences.mean(), differences.count()
    p = 2 * special.stdtr(count - 1, -abs(mean) / differences.sem())
    return p.mask(differences.nunique() == 1, np.where((mean == 0) & (count > 1), 1.0, np.nan))


def holm(p: pd.Series) -> pd.Series:
    """Return p values corrected for their number (Holm 1979); NaN is no test."""
    ordered = p.dropna().sort_values()
    return (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1).reindex(p.index)
