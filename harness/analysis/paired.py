"""`python -m harness.paired results/<sweep>`: is one row of the leaderboard better than another, image by image?

Two rows are compared on the same test images and the same seeds. By default every row is compared with every other of
the same training method; with --baseline, each row with it, in every section that has such a row. Rows must be judged
alike: on the same images, by the same evaluation. Seeds that one of the two lacks are left out, and said.

For each seed: the difference of the errors in points, negative where the first row is better; on how many images each
row alone is right; and McNemar's exact test of those. Over all seeds: the mean difference and its sample deviation
over seeds, McNemar's test of the summed counts, and a paired t test of the seeds' differences, where there are two or
more. Holm's correction (1979) is for all the comparisons printed.

McNemar's test for one seed is of those two trained networks. Summed over seeds it takes one image under several seeds
for several images, which it is not, so that its p values are too small. The t test is of training anew; it needs many
seeds to see a small difference.
"""

import argparse
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from harness.analysis.leaderboard import Section, Table, build
from harness.command_line import OK, add_sweep_directory
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
_ROW = "{:7} {:>14} {:>10} {:>11} {:>9} {:>7} {:>8} {:>7}"


def comparison(counts: pd.DataFrame) -> pd.DataFrame:
    """Two rows compared: a line for all seeds together, then one for each.

    counts: for each seed, the number of images, and of those that one row alone is right on: images, row, other.
    """
    points = 100 * (counts["other"] - counts["row"]) / counts["images"]
    together = {"seed": ALL, **counts.sum(), "difference": points.mean(), "difference_std": points.std()}
    each = counts.assign(difference=points).reset_index()
    lines = pd.concat([pd.DataFrame([together | {"t_p": t_test(points)}]), each], ignore_index=True)
    lines["mcnemar_p"] = [mcnemar(*pair) for pair in zip(lines["row"], lines["other"], strict=True)]
    return lines.rename(columns={"row": "row_alone", "other": "other_alone"})


def mcnemar(row: int, other: int) -> float:
    """The exact two-sided p value of so many images on which one row alone is right falling to either evenly."""
    return float(stats.binomtest(row, row + other).pvalue) if row + other else 1.0


def t_test(differences: pd.Series) -> float:
    """The two-sided p value of a mean of 0. Equal differences have no deviation to go by, unless they are all 0."""
    if differences.nunique() > 1:
        return float(stats.ttest_1samp(differences, 0).pvalue)
    return 1.0 if len(differences) > 1 and not differences.any() else np.nan


def holm(p: pd.Series) -> pd.Series:
    """p values corrected for how many they are (Holm 1979); what is not a number is no test."""
    known = p.dropna().sort_values()
    return (known * np.arange(len(known), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def compare(
    directory: Path,
    metric: str = "certified",
    baseline: str | None = None,
    heading: str | None = None,
    table: Table | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """The comparisons of a sweep's rows, one line for all seeds and one for each, and what was left out.

    heading: of the section whose rows are compared; those of every section by default, each with its own.
    table: the sweep's, where it is known.
    Raises InputError where there is nothing to compare.
    """
    table = table or build(directory)
    sections = [section for section in table.sections if not section.stale and heading in (None, section.heading)]
    known = list(dict.fromkeys(label for section in sections for label in _own(section)))
    if not known:
        raise InputError(f"{directory}: no trial has finished")
    if baseline is not None and baseline not in known:
        raise SettingError("--baseline", baseline, f"a row of the leaderboard: {'; '.join(known)}")
    compared, notes = [], []
    for section in sections:
        rows = _own(section)
        for row, other in _pairs(rows, baseline):
            if differing := _judged_differently(rows[row], rows[other]):
                notes.append(f"{row} against {other}, not judged alike: {differing}")
                continue
            mine, theirs = table.folders[rows[row].name], table.folders[rows[other].name]
            notes += _lacking(row, mine, other, theirs) + _lacking(other, theirs, row, mine)
            if not (seeds := sorted(set(mine) & set(theirs))):
                continue
            try:
                counts = [_count(mine[seed], theirs[seed], METRICS[metric]) for seed in seeds]
            except InputError as error:
                notes.append(f"{row} against {other}: {error}")
                continue
            lines = comparison(pd.DataFrame(counts, index=pd.Index(seeds, name="seed")))
            compared.append(lines.assign(section=section.heading, metric=metric, row=row, other=other))
    if not compared:
        why = notes or [f"no two rows have the same training method; rows for --baseline: {'; '.join(known)}"]
        raise InputError("\n".join([f"{directory}: nothing to compare", *why]))
    return _corrected(pd.concat(compared, ignore_index=True)), list(dict.fromkeys(notes))


def _own(section: Section) -> dict[str, pd.Series]:
    """The section's rows that are not published ones, best first, by their labels."""
    return {row["label"]: row for _, row in section.own.iterrows()}


def _pairs(rows: dict[str, pd.Series], baseline: str | None) -> list[tuple[str, str]]:
    if baseline is None:
        return [(a, b) for a, b in combinations(rows, 2) if rows[a]["method"] == rows[b]["method"]]
    return [(label, baseline) for label in rows if label != baseline and baseline in rows]


def _judged_differently(row: pd.Series, other: pd.Series) -> str:
    """The settings that decide on what and how the two are judged, where they differ."""
    settings = [f"evaluation.{field.name}" for field in fields(EvaluationSettings)]
    pairs = {name: (str(row[name]), str(other[name])) for name in ["fingerprint", "validation_images", *settings]}
    return ", ".join(f"{name} {a} and {b}" for name, (a, b) in pairs.items() if a != b)


def _lacking(row: str, mine: dict[int, Path], other: str, theirs: dict[int, Path]) -> list[str]:
    missing = ", ".join(map(str, sorted(set(theirs) - set(mine))))
    return [f"seed {missing} of {other}, which {row} lacks"] if missing else []


def _count(row: Path, other: Path, errors: tuple[str, ...]) -> dict[str, int]:
    mine, theirs = verdicts_of(row), verdicts_of(other)
    if not mine.index.equals(theirs.index):
        raise InputError(f"{row} and {other} are judged on different images")
    right, right_too = ~mine.isin(errors), ~theirs.isin(errors)
    return {"images": len(mine), "row": int((right & ~right_too).sum()), "other": int((right_too & ~right).sum())}


def verdicts_of(trial: Path) -> pd.Series:
    """Each image's verdict, by its number and label. Raises DamagedFileError."""
    table = folder.read_verdicts(trial, [names.INDEX, names.LABEL, names.VERDICT])
    return table.set_index([names.INDEX, names.LABEL])[names.VERDICT].sort_index()


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
    add_sweep_directory(parser)
    parser.add_argument("--baseline", metavar="ROW", help="a row as the leaderboard prints it; default: all pairs")
    parser.add_argument("--metric", choices=list(METRICS), default="certified", help="which error; default: certified")


def main(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises InputError where nothing can be compared."""
    lines, notes = compare(options.directory, options.metric, options.baseline)
    path = options.directory / FILE
    write_text(path, lines.to_csv(index=False, lineterminator="\n"))
    show(lines, notes)
    print(path)
    return OK
