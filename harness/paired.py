"""`python -m harness.paired results/<sweep> ...`: is one row of the leaderboard better than another?

Two rows are compared on the same test images and the same seeds. By default every row is compared with every other of
the same training method; with --baseline, each row with it; with --only, these rows alone. Rows of several sweeps are
compared across them, too. Rows must be evaluated on the same images in the same way.

Each line compares one seed, or all together: the difference of the errors in points (negative where the first row is
better) and on how many images each row alone is right. A single seed has McNemar's exact test of these, all together a
paired t test. Holm's correction (1979) covers all p values of a test that are printed, so choose the rows before you
see their numbers.

The t test says whether training again would give the same order; it needs many seeds to see a small difference.
McNemar's test of one seed is about these two trained networks.
"""

import argparse
from typing import Any

import numpy as np

from harness import command_line
from harness.command_line import OK, add_patterns, add_sweep_directories
from harness.common.terminal import new_console, print_table, say
from harness.leaderboard.comparisons import ALL, METRICS, compare
from harness.leaderboard.files import csv_text
from harness.leaderboard.rows import NOT_COUNTED
from harness.leaderboard.table import build_leaderboard
from harness.storage.files import write_text

FILE = "paired.csv"
_TITLES = ("", "difference", "first only", "second only", "McNemar p", "McNemar Holm", "t test p", "t test Holm")
_LEGEND = """\
difference: the first row's error minus the second's, in points; mean ± sample standard deviation over the seeds
first only, second only: images that this row alone is right on
Holm: the p value before it, corrected for all p values of this test here"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_sweep_directories(parser, "of several, rows are compared across them, too; paired.csv is written to the first")
    parser.add_argument(
        "--baseline", metavar="PATTERN", help="the row to compare with: its label, or a pattern; default: all pairs"
    )
    add_patterns(parser, "--only", "only rows whose label")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="SEED", help="only these; default: all")
    parser.add_argument("--metric", choices=list(METRICS), default="certified", help="which error; default: certified")


def main(options: argparse.Namespace) -> int:
    """Return the exit status. Raises InputError where nothing can be compared."""
    leaderboard = build_leaderboard(*options.directories)
    trials = leaderboard.trials
    faulty = trials[trials["problem"].str.startswith(NOT_COUNTED, na=False)]
    for path, problem in faulty[["trial_dir", "problem"]].to_numpy():
        say(f"left out: {path}: {problem}")
    lines, notes = compare(leaderboard.sections, options.metric, options.baseline, options.only, options.seeds)
    path = options.directories[0] / FILE
    write_text(path, csv_text(lines))
    console = new_console()
    for (heading, metric, row, other), pair in lines.groupby(["section", "metric", "row", "other"], sort=False):
        say(f"\n{heading}: {metric} error\n{row} against {other}")
        print_table(console, _TITLES, map(_cells, pair.to_dict("records")))
    say("", *(f"left out: {note}" for note in notes), _LEGEND, path)
    return OK


def _cells(line: dict[Any, Any]) -> list[str]:
    spread = "" if np.isnan(line["difference_std"]) else f" ± {line['difference_std']:.2f}"
    p_values = [line[name] for name in ("mcnemar_p", "mcnemar_holm", "t_p", "t_holm")]
    return [
        ALL if line["seed"] == ALL else f"seed {line['seed']}",
        f"{line['difference']:+.2f}{spread}",
        str(line["row_alone"]),
        str(line["other_alone"]),
        *("" if np.isnan(p) else f"{p:.2g}" for p in p_values),
    ]


if __name__ == "__main__":
    raise SystemExit(command_line.main("paired"))
