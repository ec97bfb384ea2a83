"""`python -m harness.paired results/<sweep> ...`: is one row of the leaderboard better than another, image by image?

Two rows are compared on the same test images and the same seeds. By default every row is compared with every other of
the same training method; with --baseline, each row with it, in every section that has such a row; with --only, these
rows alone. Of several sweeps, rows are compared across them, too. Rows must be judged alike: on the same images, by
the same evaluation. Seeds that one of the two lacks are left out, and said.

For each seed: the difference of the errors in points, negative where the first row is better; on how many images each
row alone is right; and McNemar's exact test of those. Over all seeds: the mean difference and its sample deviation
over seeds, McNemar's test of the summed counts, and a paired t test of the seeds' differences, where there are two or
more. Holm's correction (1979) is for all the comparisons printed; which rows a question is about is to be settled
before their numbers are seen.

McNemar's test for one seed is of those two trained networks. Summed over seeds it takes one image under several seeds
for several images, which it is not, so that its p values are too small. The t test is of training anew; it needs many
seeds to see a small difference.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.typing import SeriesGroupBy
from scipy import special  # scipy.stats takes seconds

from harness.analysis.leaderboard import Table, build
from harness.analysis.section import Section
from harness.analysis.trials import NOT_COUNTED, TWICE
from harness.command_line import OK, add_patterns, add_sweep_directories, meant
from harness.config.settings import EvaluationSettings
from harness.errors import InputError, SettingError
from harness.storage import folder, names
from harness.storage.files import write_text

FILE, ALL = "paired.csv", "all"
METRICS = {  # on which verdicts an image counts as an error
    "certified": (names.MISCLASSIFIED, names.ATTACKED, *names.OPEN),
    "attack": (names.MISCLASSIFIED, names.ATTACKED),
    "standard": (names.MISCLASSIFIED,),
}
LEGEND = """\
difference: the first row's error minus the second's, in points; mean ± sample standard deviation over the seeds
first only, second only: images that only this row is right on
McNemar p of all seeds: too small, since it takes one image under several seeds for several images
Holm: the p value before it, corrected for all comparisons here"""
_IMAGE = [names.INDEX, names.LABEL]
_ROW = "{:7} {:>14} {:>10} {:>11} {:>9} {:>7} {:>8} {:>7}"


def comparison(counts: pd.DataFrame) -> pd.DataFrame:
    """Pairs of rows compared: of each a line for all seeds together, then one for each.

    counts: a row a pair and seed: section, metric, row, other, seed, how many images, and of those how many one row
    alone is right on: images, row_alone, other_alone.
    """
    each = counts.assign(difference=100 * (counts["other_alone"] - counts["row_alone"]) / counts["images"])
    pairs = each.groupby(["section", "metric", "row", "other"], sort=False)
    together = pairs[["images", "row_alone", "other_alone"]].sum()
    points = pairs["difference"]
    together["difference"], together["difference_std"] = points.mean(), points.std()
    together["t_p"] = t_test(points)
    lines = pd.concat(
        [together.reset_index().assign(seed=ALL, pair=range(len(together))), each.assign(pair=pairs.ngroup())]
    )
    lines = lines.sort_values("pair", kind="stable", ignore_index=True).drop(columns="pair")
    lines["mcnemar_p"] = mcnemar(lines["row_alone"].to_numpy(), lines["other_alone"].to_numpy())
    return lines


def mcnemar(row: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The exact two-sided p values of so many images on which one row alone is right falling to either evenly."""
    return np.minimum(1.0, 2 * special.bdtr(np.minimum(row, other), row + other, 0.5))


def t_test(differences: SeriesGroupBy) -> pd.Series:
    """Each group's two-sided p value of a mean of 0. Equal differences have no deviation to go by, unless they are all
    0."""
    mean, count = differences.mean(), differences.count()
    p = 2 * special.stdtr(count - 1, -abs(mean) / differences.sem())
    alike = differences.nunique() == 1
    return p.mask(alike, np.where((mean == 0) & (count > 1), 1.0, np.nan))


def holm(p: pd.Series) -> pd.Series:
    """p values corrected for how many they are (Holm 1979); what is not a number is no test."""
    known = p.dropna().sort_values()
    return (known * np.arange(len(known), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def compare(
    table: Table,
    metric: str = "certified",
    baseline: str | None = None,
    heading: str | None = None,
    only: Sequence[str] = (),
) -> tuple[pd.DataFrame, list[str]]:
    """The comparisons of a leaderboard's rows, one line for all seeds and one for each, and what was left out.

    heading: of the section whose rows are compared; those of every section by default, each with its own.
    only: patterns of the rows that are compared with each other, or with the baseline; all by default.
    Raises InputError where there is nothing to compare.
    """
    sections = [section for section in table.sections if not section.stale and heading in (None, section.heading)]
    known = list(dict.fromkeys(label for section in sections for label in _own(section)))
    if not known:
        raise InputError("nothing to compare: no trial has finished")
    if baseline is not None and baseline not in known:
        raise SettingError("--baseline", baseline, f"a row of the leaderboard: {'; '.join(known)}")
    chosen = meant("--only", only, {label: (label,) for label in known}) if only else known
    found = [compared(table, section, _pairs(_own(section), chosen, baseline), metric) for section in sections]
    notes = list(dict.fromkeys(note for _, its in found for note in its))
    lines = pd.concat([lines for lines, _ in found], ignore_index=True)
    not_counted = table.trials[table.trials["state"] == NOT_COUNTED]
    faulty = [f"{path}: {why}" for path, why in not_counted[["folder", "problem"]].values]
    if lines.empty:
        why = notes or [f"no two of these rows have one training method; rows for --baseline: {'; '.join(known)}"]
        raise InputError("\n".join(["nothing to compare", *why, *faulty]))
    return _corrected(lines), notes + faulty


def compared(
    table: Table, section: Section, pairs: list[tuple[str, str]], metric: str = "certified"
) -> tuple[pd.DataFrame, list[str]]:
    """The comparisons of these pairs of a section's rows, by their labels, and what was left out. Each verdict file is
    read once."""
    rows, notes = _own(section), list[str]()
    counts = list[dict[str, Any]]()
    judged = cache(partial(_judged, errors=METRICS[metric]))
    for row, other in pairs:
        if differing := _judged_differently(rows[row], rows[other]):
            notes.append(f"{row} against {other}, not judged alike: {differing}")
            continue
        mine, theirs = table.folders[rows[row].name], table.folders[rows[other].name]
        notes += _lacking(row, mine, other, theirs) + _lacking(other, theirs, row, mine)
        pair = {"section": section.heading, "metric": metric, "row": row, "other": other}
        try:
            counts += [
                pair | {"seed": seed} | _count(judged(mine[seed]), judged(theirs[seed]))
                for seed in sorted(set(mine) & set(theirs))
            ]
        except InputError as error:
            notes.append(f"{row} against {other}: {error}")
    return comparison(pd.DataFrame(counts)) if counts else pd.DataFrame(), notes


def _own(section: Section) -> dict[str, pd.Series]:
    """The section's rows that are not published ones, best first, by their labels."""
    return {row["label"]: row for _, row in section.own.iterrows()}


def _pairs(rows: dict[str, pd.Series], chosen: list[str], baseline: str | None) -> list[tuple[str, str]]:
    its = [label for label in rows if label in chosen]
    if baseline is None:
        return [(a, b) for a, b in combinations(its, 2) if rows[a]["method"] == rows[b]["method"]]
    return [(label, baseline) for label in its if label != baseline and baseline in rows]


def _judged_differently(row: pd.Series, other: pd.Series) -> str:
    """The settings that decide on what and how the two are judged, where they differ."""
    settings = [f"evaluation.{field.name}" for field in fields(EvaluationSettings)]
    pairs = {name: (str(row[name]), str(other[name])) for name in ["fingerprint", "validation_images", *settings]}
    return ", ".join(f"{name} {a} and {b}" for name, (a, b) in pairs.items() if a != b)


def _lacking(row: str, mine: dict[int, Path], other: str, theirs: dict[int, Path]) -> list[str]:
    missing = ", ".join(map(str, sorted(set(theirs) - set(mine))))
    return [f"seed {missing} of {other}, which {row} lacks"] if missing else []


class _Judged(NamedTuple):
    """A trial's images, by number and label, and on which of them it is right."""

    trial: Path
    images: np.ndarray
    right: np.ndarray


def _judged(trial: Path, errors: tuple[str, ...]) -> _Judged:
    table = verdicts_of(trial)
    return _Judged(trial, table[_IMAGE].to_numpy(), ~table[names.VERDICT].isin(errors).to_numpy())


def _count(mine: _Judged, theirs: _Judged) -> dict[str, int]:
    if not np.array_equal(mine.images, theirs.images):
        raise InputError(f"{mine.trial} and {theirs.trial} are judged on different images")
    right, right_too = int((mine.right & ~theirs.right).sum()), int((theirs.right & ~mine.right).sum())
    return {"images": len(mine.right), "row_alone": right, "other_alone": right_too}


def verdicts_of(trial: Path) -> pd.DataFrame:
    """Each image's number, label and verdict, by number and label. Raises DamagedFileError."""
    return folder.read_verdicts(trial, [*_IMAGE, names.VERDICT]).sort_values(_IMAGE)


def _corrected(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines of all comparisons, with p values corrected for how many they are."""
    for test in ("mcnemar", "t"):
        lines[f"{test}_holm"] = holm(lines.loc[lines["seed"] == ALL, f"{test}_p"])
    first = ["section", "metric", "row", "other", "seed", "images", "row_alone", "other_alone"]
    return lines[[*first, "difference", "difference_std", "mcnemar_p", "mcnemar_holm", "t_p", "t_holm"]]


def show(lines: pd.DataFrame, notes: list[str]) -> None:
    """Print each comparison: a line for all seeds, then one for each."""
    for heading, part in lines.groupby("section", sort=False):
        print(f"\n{heading}: {part['metric'].iloc[0]} error")
        print(_ROW.format("", "difference", "first only", "second only", "McNemar p", "Holm", "t test p", "Holm"))
        for line in part.to_dict("records"):
            if line["seed"] == ALL:
                print(f"\n{line['row']} against {line['other']}")
            print(_ROW.format(*_cells(line)).rstrip())
    print("", *(f"left out: {note}" for note in notes), LEGEND, sep="\n")


def _cells(line: dict[str, Any]) -> list[str]:
    spread = "" if np.isnan(line["difference_std"]) else f" ± {line['difference_std']:.2f}"
    p_values = [line[name] for name in ("mcnemar_p", "mcnemar_holm", "t_p", "t_holm")]
    return [
        ALL if line["seed"] == ALL else f"seed {line['seed']}",
        f"{line['difference']:+.2f}{spread}",
        str(line["row_alone"]),
        str(line["other_alone"]),
        *("" if np.isnan(p) else f"{p:.2g}" for p in p_values),
    ]


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_sweep_directories(parser, "of several, rows are compared across them, too, and the first keeps the file")
    parser.add_argument("--baseline", metavar="ROW", help="a row as the leaderboard prints it; default: all pairs")
    add_patterns(parser, "--only", "only rows whose label")
    parser.add_argument("--metric", choices=list(METRICS), default="certified", help="which error; default: certified")


def _together(directories: Sequence[Path]) -> Table:
    """The leaderboard of sweeps. Raises InputError where one of several has no row, or holds a trial of another one."""
    table = build(*directories)
    for directory in directories if len(directories) > 1 else ():
        its = table.trials[[path.is_relative_to(directory) for path in table.trials["folder"]]]
        if (twice := its[its["problem"].str.endswith(TWICE, na=False)]).size:
            raise InputError(f"{twice['folder'].iloc[0]}: {TWICE}, and which of the two is meant is not known")
        if its["problem"].notna().all():
            raise InputError(f"{directory}: no trial has finished; one is {its['problem'].iloc[0]}")
    return table


def main(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises InputError where nothing can be compared."""
    lines, notes = compare(_together(options.directories), options.metric, options.baseline, only=options.only)
    path = options.directories[0] / FILE
    write_text(path, lines.to_csv(index=False, lineterminator="\n"))
    show(lines, notes)
    print(path)
    return OK
