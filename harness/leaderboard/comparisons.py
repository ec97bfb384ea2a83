"""Paired comparisons of a leaderboard's rows: the same test images, the same seeds."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.typing import SeriesGroupBy
from scipy import special  # scipy.stats takes seconds to import

from harness.common import names
from harness.common.errors import InputError, require
from harness.common.patterns import select_by_pattern
from harness.leaderboard.evaluations import LABEL
from harness.leaderboard.section import FEWEST_SEEDS, Section
from harness.storage.study_tables import read_stored_verdicts

SIGNIFICANCE = 0.05
"""The corrected p value below which two rows differ significantly."""

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
    sections: Sequence[Section],
    metric: str = "certified",
    baseline: str | None = None,
    only: Sequence[str] = (),
    seeds: Collection[int] = (),
) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Return the comparisons of rows, a line for all seeds and one for each seed, then what was left out, as text.

    Left out are pairs of rows that cannot be compared, and seeds that one row of a pair lacks.

    Without a baseline every row is compared with every other of its section and method, else each row with the
    baseline. baseline, only: labels, labels without the settings in which rows differ, or patterns of labels; the
    baseline's is of one row. seeds: only these; default: all.
    Raises InputError where there is nothing to compare.
    """
    labels = list(dict.fromkeys(label for section in sections for label in section.own["label"]))
    if not labels:
        raise InputError("nothing to compare: no evaluation has finished")
    sections = _with_seeds(sections, seeds) if seeds else sections
    if baseline is not None:
        matching = select_labels("--compare", [baseline], sections)
        require("--compare", baseline, len(matching) == 1, f"one row; it matches: {'; '.join(matching)}")
        baseline = matching[0]
    selected = select_labels("--only", only, sections) if only else labels
    counts, pairs, missing = list[pd.DataFrame](), dict[str, None](), dict[str, None]()
    read = cache(partial(_read_right, errors=METRICS[metric]))  # each file is read once
    for section in sections:
        for row, other in _pairs(section, selected, baseline):
            missing |= dict.fromkeys(_missing_seeds(section, row, other) + _missing_seeds(section, other, row))
            try:
                counts.append(_counts(section, row, other, read))
            except InputError as error:
                pairs[f"{row} against {other}: {error}"] = None
    if not any(map(len, counts)):
        why = [*missing, *pairs] or [_why_no_pair(sections, labels)]
        raise InputError("\n".join(["nothing to compare", *why]))
    common = pd.concat([pair for pair in counts if len(pair)])  # empty ones would make integers floats
    return paired_tests(common.assign(metric=metric)), [*pairs], [*missing]


def select_labels(option: str, patterns: Sequence[str], sections: Sequence[Section]) -> list[str]:
    """Return the labels that patterns select; model, method and options alone name a row whatever else lies there."""
    rows = pd.concat([section.own for section in sections]).set_index("label")[LABEL].fillna("")
    short = {label: " ".join(filter(None, parts)) for label, *parts in rows.itertuples()}
    full = [[label for label in short if short[label] == name and name not in short] or [name] for name in patterns]
    return select_by_pattern(option, [label for found in full for label in found], {label: (label,) for label in short})


def _why_no_pair(sections: Sequence[Section], labels: list[str]) -> str:
    if len(labels) == 1:
        return f"there is only one row: {labels[0]}"
    if len(sections) == 1:
        return f"no two of these rows have one training method; rows for --compare: {'; '.join(labels)}"
    rows = [f"{section.heading}: {'; '.join(section.own['label'])}" for section in sections]
    return "\n  ".join(
        ["only rows of one section can be compared; without a row for --compare, of one training method:", *rows]
    )


def _with_seeds(sections: Sequence[Section], seeds: Collection[int]) -> list[Section]:
    existing = sorted({int(seed) for section in sections for seed in section.finished["seed"]})
    for seed in seeds:
        require("--seeds", seed, seed in existing, f"some of {', '.join(map(str, existing))}")
    return [replace(section, finished=section.finished[section.finished["seed"].isin(seeds)]) for section in sections]


def _pairs(section: Section, selected: list[str], baseline: str | None) -> list[tuple[str, str]]:
    methods = {label: method for label, method in section.own[["label", "method"]].to_numpy() if label in selected}
    if baseline is None:
        return [(a, b) for a, b in combinations(methods, 2) if methods[a] == methods[b]]
    return [(label, baseline) for label in methods if label != baseline and baseline in set(section.own["label"])]


def _missing_seeds(section: Section, row: str, other: str) -> list[str]:
    missing = sorted(set(_evaluation_dirs(section, other)) - set(_evaluation_dirs(section, row)))
    return [f"seed {', '.join(map(str, missing))} of {other}, which {row} lacks"] if missing else []


def _evaluation_dirs(section: Section, label: str) -> dict[int, Path]:
    """Return the folders of a row's finished evaluations by their seeds."""
    trials = section.trials[section.trials["label"] == label]
    return dict(zip(trials["seed"], trials["evaluation_dir"], strict=True))


def _read_right(evaluation_dir: Path, errors: tuple[str, ...]) -> pd.Series:
    """Return on which images a network is right, by number and label. Raises DamagedFileError."""
    verdicts = read_stored_verdicts(evaluation_dir, [*_IMAGE, names.VERDICT]).set_index(_IMAGE).sort_index()
    return ~verdicts[names.VERDICT].isin(errors)


def _counts(section: Section, row: str, other: str, read: Callable[[Path], pd.Series]) -> pd.DataFrame:
    """Return for each common seed on how many images one row alone is right. Raises InputError."""
    first, second = (section.own.set_index("label")["fingerprint"][label] for label in (row, other))
    if first != second:
        raise InputError(f"{row} and {other} are evaluated on other data: fingerprint {first} and {second}")
    mine, theirs = _evaluation_dirs(section, row), _evaluation_dirs(section, other)
    counts = []
    for seed in sorted(set(mine) & set(theirs)):
        a, b = read(mine[seed]), read(theirs[seed])
        if not a.index.equals(b.index):
            raise InputError(f"{mine[seed]} and {theirs[seed]} are evaluated on different images")
        counts.append({"seed": seed, "images": len(a), "row_alone": (a & ~b).sum(), "other_alone": (b & ~a).sum()})
    return pd.DataFrame(counts).assign(section=section.heading, row=row, other=other)


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
    p = mcnemar(lines["row_alone"].to_numpy(), lines["other_alone"].to_numpy())
    lines["mcnemar_p"] = np.where(lines["seed"] == ALL, np.nan, p)  # there, an image would count once for each seed
    for test in ("mcnemar", "t"):
        lines[f"{test}_holm"] = holm(lines[f"{test}_p"])
    return lines[_COLUMNS]


def mcnemar(row_alone: np.ndarray, other_alone: np.ndarray) -> np.ndarray:
    """Return McNemar's exact two-sided p values from the numbers of images that one row alone is right on."""
    return np.minimum(1.0, 2 * special.bdtr(np.minimum(row_alone, other_alone), row_alone + other_alone, 0.5))


def t_test(differences: SeriesGroupBy) -> pd.Series:
    """Return each group's two-sided p value of the mean being 0.

    NaN for fewer than FEWEST_SEEDS differences and for several that are the same; 1 where all are 0.
    """
    mean, count = differences.mean(), differences.count()
    p = 2 * special.stdtr(count - 1, -abs(mean) / differences.sem())
    p = p.mask(differences.nunique() == 1, np.where(mean == 0, 1.0, np.nan))
    return p.where(count >= FEWEST_SEEDS)


def too_few_seeds(seeds: int) -> str:
    """Return a sentence on rows that have fewer than FEWEST_SEEDS seeds in common."""
    number = "1 seed is" if seeds == 1 else f"{seeds} seeds are"
    return f"{number} too few to rank rows; run 5 or more (`--set seeds=[0,1,2,3,4]`)."


def holm(p: pd.Series, tests: int | None = None) -> pd.Series:
    """Return p values corrected for the number of tests (Holm 1979), default: of these p values; NaN is no test."""
    ordered = p.dropna().sort_values()
    tests = len(ordered) if tests is None else tests
    return (ordered * (tests - np.arange(len(ordered)))).cummax().clip(upper=1).reindex(p.index)
