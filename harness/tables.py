"""`python -m harness.tables results/<sweep>`: write a sweep's leaderboard and its page, or show what its trials say.

Writes leaderboard.md, .csv and .json, and report.html, a page with figures that opens offline. Given several sweeps
(`python -m harness.tables results/*`), it writes each one's files, and index.html beside the first one: all of them on
one page, with the studies in directories that are no sweep's, such as results/published. One table of several sweeps in
LaTeX: --compare --latex. Tables have what the last command in a directory asked for; --all prints the rest, too. With
--all, --only or --eps (sections at these radii, of several sweeps together) it prints and writes nothing.

With --compare it compares rows instead, on the same test images and the same seeds: each with the row that --compare
names or, without a name, every row with every other of the same training method. Rows of several sweeps are compared
across them, too, if they are evaluated on the same images in the same way. Each line compares one seed, or all
together: the difference of the errors in points (negative where the first row is better) and on how many images each
row alone is right. A single seed has McNemar's exact test of these: it is about these two trained networks. All
together have a paired t test, which says whether training again would give the same order; it needs many seeds. Holm's
correction (1979) covers all p values of a test that are printed, so choose the rows before you see their numbers.

With --status it shows the state of each network and evaluation instead, from the folders alone.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import filesize

from harness import command_line
from harness.command_line import OK, add_data_dir, add_patterns, add_sweep_directories
from harness.common.errors import InputError
from harness.common.radius import Radius, parse_radii
from harness.common.terminal import new_console, print_table, say, with_plural
from harness.leaderboard.comparisons import ALL, METRICS, compare, too_few_seeds
from harness.leaderboard.evaluations import NOT_COUNTED
from harness.leaderboard.files import csv_text, leaderboard_files, print_leaderboard, print_sections, write_leaderboard
from harness.leaderboard.latex import latex_comparisons, latex_tables
from harness.leaderboard.section import FEWEST_SEEDS
from harness.leaderboard.table import build_leaderboard, select_rows
from harness.storage import folder, study_tables
from harness.storage.files import write_text
from harness.storage.lock import holder
from harness.storage.state import read_state, read_states

# Pages are imported late: they import torch and matplotlib.
COMPARISONS, COMPARISONS_LATEX = "comparisons.csv", "comparisons.tex"
_ALL_PAIRS = ""
_TITLES = ("", "difference", "first only", "second only", "McNemar p", "McNemar Holm", "t test p", "t test Holm")
_LEGEND = """\
difference: the first row's error minus the second's, in points; mean ± sample standard deviation over the seeds
first only, second only: images that this row alone is right on
Holm: the p value before it, corrected for all p values of this test here"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_sweep_directories(parser, "rows of several are compared across them")
    parser.add_argument(
        "--compare",
        nargs="?",
        const=_ALL_PAIRS,
        metavar="ROW",
        help="compare rows with this one: its label, or a pattern; without ROW, all pairs. "
        f"Also writes {COMPARISONS} to the first directory",
    )
    radii = (
        "only sections at these radii, such as 2/255,4/255, compared or printed; no file of the leaderboard is written"
    )
    parser.add_argument("--eps", metavar="RADII", help=radii)
    add_patterns(parser, "--only", "print, or compare, only rows whose label")
    rest = "print also what the last command did not ask for, with a warning at each; no file is written"
    parser.add_argument("--all", action="store_true", help=rest)
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="SEED", help="compare only these seeds")
    parser.add_argument("--metric", choices=list(METRICS), help="which error to compare; default: certified")
    parser.add_argument(
        "--status", action="store_true", help="show the state of each evaluation: finished, running, failed"
    )
    latex = (
        "also write leaderboard.tex, and figures/ as PDF; later calls then keep them up to date. With --compare: also "
    )
    latex += f"write {COMPARISONS_LATEX}, the rows of all directories in one table and what was compared"
    parser.add_argument("--latex", action="store_true", help=latex)
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Return the exit status. Raises InputError where nothing can be written, compared or shown."""
    if options.compare is None and (options.seeds or options.metric):
        raise InputError("--seeds and --metric: need --compare")
    if options.status and (options.only or options.all):
        raise InputError("--only and --all: without --status, which shows all")
    if options.eps and (options.status or (options.latex and options.compare is None)):
        raise InputError(
            "--eps: without --status, and with --latex only beside --compare: leaderboard.tex has all radii"
        )
    radii = parse_radii(options.eps) if options.eps else ()
    if options.status:
        for directory in options.directories:
            _print_status(directory)
    elif options.compare is not None:
        _compare(options, radii)
    elif radii or options.only or options.all:
        leaderboard = build_leaderboard(*options.directories, eps=radii, with_rest=options.all)
        print_sections(select_rows(leaderboard, options.only) if options.only else leaderboard, new_console())
    else:
        _write(options.directories, options.data_dir, options.latex)
    return OK


def _write(directories: list[Path], data_dir: str | None, latex: bool) -> None:
    """Write the tables of sweeps, and the pages of those whose networks are here.

    Print the leaderboard of a single sweep; write one page of several.
    """
    is_one = len(directories) == 1
    sweep_dirs = directories if is_one else [path for path in directories if study_tables.is_study(path)]
    below = [path for parent in directories for path in sorted(parent.glob("*/")) if study_tables.is_study(path)]
    if not sweep_dirs and not below:
        raise InputError(f"none of {', '.join(map(str, directories))} holds networks: give results/<sweep>")
    leaderboards = []
    for directory in sweep_dirs:
        if folder.network_folders(directory):
            from harness.report.sweep_page import write_sweep

            leaderboard, written = write_sweep(directory, data_dir, latex), [directory / folder.REPORT]
        else:  # a published study's tables
            leaderboard = write_leaderboard(directory, latex)
            written = [] if is_one else leaderboard_files(directory)[:1]
        if is_one:
            print_leaderboard(leaderboard, new_console())
        leaderboards.append(leaderboard)
        for path in written:
            say(path)
    if not is_one:
        from harness.report.studies_page import INDEX, write_studies_page

        page = directories[0].parent / INDEX
        write_studies_page([*leaderboards, *map(build_leaderboard, below)], page)
        say(page)


def _compare(options: argparse.Namespace, radii: Sequence[Radius]) -> None:
    leaderboard = build_leaderboard(*options.directories, eps=radii, with_rest=options.all)
    faulty = leaderboard.table[leaderboard.table["state"] == NOT_COUNTED]
    for path, problem in faulty[["evaluation_dir", "problem"]].to_numpy():
        say(f"left out: {path}: {problem}")
    metric, baseline = options.metric or "certified", options.compare or None
    lines, pairs, missing = compare(leaderboard.sections, metric, baseline, options.only, options.seeds)
    paths = [options.directories[0] / COMPARISONS]
    write_text(paths[0], csv_text(lines))
    if options.latex:
        paths.append(options.directories[0] / COMPARISONS_LATEX)
        write_text(paths[1], latex_tables(leaderboard, "comparison") + latex_comparisons(lines, "comparison"))
    console = new_console()
    for heading, part in lines.groupby("section", sort=False):
        say(f"\n{heading}: {metric} error")
        tables = [pair for _, pair in part.groupby(["row", "other"], sort=False)]
        if baseline is None and len(tables) > 1:
            names = {name: number for number, name in enumerate(dict.fromkeys([*part["row"], *part["other"]]), start=1)}
            say(*(f"{number}: {name}" for name, number in names.items()))
            print_table(console, ("rows", "seeds", *_TITLES[1:]), (_pair_cells(pair, names) for pair in tables))
        else:
            for pair in tables:
                say(" against ".join(pair[["row", "other"]].iloc[0]))
                print_table(console, _TITLES, map(_cells, pair.to_dict("records")))
        if (seeds := min(map(len, tables)) - 1) < FEWEST_SEEDS:
            say(f"no t test: {too_few_seeds(seeds)}")
    say("", *(f"left out: {note}" for note in (*missing, *pairs)), _LEGEND, *paths)


def _pair_cells(pair: pd.DataFrame, names: dict[str, int]) -> list[str]:
    """Return a pair of rows in one line: all seeds together, or the only one.

    pair: its lines of `compare`. names: the numbers of rows.
    """
    seeds = pair[pair["seed"] != ALL]
    line = (seeds if len(seeds) == 1 else pair[pair["seed"] == ALL]).to_dict("records")[0]
    return [f"{names[line['row']]} against {names[line['other']]}", str(len(seeds)), *_cells(line)[1:]]


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


def _print_status(sweep_dir: Path) -> None:
    """Print the state of each network under each of its evaluations. Raises InputError if there are none."""
    if not (states := read_states(sweep_dir)):
        missing = f"{sweep_dir}/{folder.NETWORKS}/*/{folder.TRAINING}"
        raise InputError(f"{sweep_dir} holds no networks: there is no {missing}")
    run = holder(sweep_dir)
    if run:
        say(f"process {run.process} on {run.host} has held {sweep_dir} for {_span(run.since)}")
    else:
        say(f"no run on this machine is using {sweep_dir}")
    rows, counts, shown = list[list[str]](), Counter[str](), {folder.network_of(path) for path in states}
    for path, state in states.items():
        counts[state.state] += 1
        network_dir = folder.network_of(path)
        age = "" if state.written is None else f"{_span(state.written)} ago"
        label = state.training.config.label if state.training else "?"
        evaluation = state.evaluation.config.description if state.evaluation else ""
        size = filesize.decimal(_bytes(network_dir))
        rows.append([label, network_dir.name, evaluation, state.state, state.description, age, size])
    rows += [_teacher_row(path) for path in folder.network_folders(sweep_dir, teachers=True) if path not in shown]
    titles = ["network", "key", "evaluation", "state", "", "written", "disk"]
    print_table(new_console(), titles, sorted(rows))
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    networks = with_plural(len(shown), "network")
    size = filesize.decimal(_bytes(sweep_dir))
    say(f"{networks}, {with_plural(len(states), 'evaluation')}: {summary}; {size} on disk")


def _teacher_row(network_dir: Path) -> list[str]:
    """Return the row of a network that is only a teacher."""
    state = read_state(network_dir / folder.EVALUATIONS / "none")
    name = f"teacher {state.training.config.label if state.training else '?'}"
    what = ["trained", ""] if folder.is_trained(network_dir) else [state.state, state.description]
    age = "" if state.written is None else f"{_span(state.written)} ago"
    return [name, network_dir.name, "", *what, age, filesize.decimal(_bytes(network_dir))]


def _bytes(directory: Path) -> int:
    """Return the size of the files below a directory."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            total += 0 if path.is_dir() else path.lstat().st_size
    return total


def _span(since: float) -> str:
    """Return how long ago a time was, in seconds since 1970."""
    seconds = max(0.0, time.time() - since)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    raise SystemExit(command_line.main("tables"))
