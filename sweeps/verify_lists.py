"""Run `harness.verify` on several lists of instances, and count the answers of each.

    python sweeps/verify_lists.py LIST.csv [LIST.csv ...] --results-dir DIR --timeout 10 [--every 5]
        [--answers TOOL.csv ...] [--truth unsat]

LIST.csv: as `harness.verify` reads it; a file that exists only packed (.gz) is read packed. TOOL.csv: published answers
as for compare_answers.py. An answer is late if it took more than 1.1 times its limit plus 2 seconds. The exit status is
1 if an answer is wrong or late.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import pandas as pd
from compare_answers import agreed_answers, base_names, is_solved, published_answers

from harness.common.terminal import new_console, print_table

_STATUSES = ("sat", "unsat", "unknown", "timeout", "error")
_TITLES = ("list", "instances", *_STATUSES, "published", "wrong", "late", "longest", "seconds")


def main() -> int:
    """Solve the instances of each list and print a row for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", type=Path, nargs="+", metavar="LIST.csv")
    parser.add_argument("--results-dir", type=Path, required=True, metavar="DIR", help="a folder of answers a list")
    parser.add_argument("--timeout", type=float, required=True, help="seconds of each instance")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="of each list only every K-th instance")
    parser.add_argument("--answers", type=Path, nargs="+", default=[], metavar="TOOL.csv", help="published answers")
    parser.add_argument("--truth", choices=("sat", "unsat"), help="the right answer to all instances")
    options = parser.parse_args()
    truth = agreed_answers(published_answers(options.answers)) if options.answers else None
    rows, failures = list[tuple[str, ...]](), 0
    for path in options.lists:
        answers = _solve(path, options)
        right = pd.Series(options.truth, answers.index) if truth is None else _right_answers(answers, truth)
        wrong = is_solved(answers["result"]) & is_solved(right) & (answers["result"] != right)
        late = answers["seconds"] > 1.1 * options.timeout + 2
        failures += int(wrong.sum() + late.sum())
        counts = [*((answers["result"] == status).sum() for status in _STATUSES), is_solved(right).sum()]
        seconds = f"{answers['seconds'].max():.1f}", f"{answers['seconds'].sum():.0f}"
        rows.append((_name(path), *map(str, (len(answers), *counts, wrong.sum(), late.sum())), *seconds))
    print_table(new_console(), _TITLES, rows)
    return int(failures > 0)


def _name(path: Path) -> str:
    return f"{path.absolute().parent.name}-{path.stem}"


def _solve(path: Path, options: argparse.Namespace) -> pd.DataFrame:
    """Return results.csv of a list's instances, solved one at a time."""
    directory = options.results_dir.absolute() / _name(path)
    sample = directory.with_suffix(".csv")
    sample.parent.mkdir(parents=True, exist_ok=True)
    with open(path, newline="") as file:
        rows = [row for row in csv.reader(file) if row][:: options.every]
    with open(sample, "w", newline="") as file:
        csv.writer(file).writerows([*(_existing(path.parent / name) for name in row[:2]), row[2]] for row in rows)
    arguments = [str(sample), "--timeout", str(options.timeout), "--workers", "1", "--results-dir", str(directory)]
    if subprocess.run([sys.executable, "-m", "harness.verify", *arguments]).returncode == 2:  # 1: an answer is an error
        raise SystemExit(2)
    return pd.read_csv(directory / "results.csv", keep_default_na=False)


def _existing(path: Path) -> Path:
    """Return the absolute path of a file, or of its packed form if only that exists."""
    packed = path.with_name(f"{path.name}.gz").absolute()
    return packed if packed.exists() and not path.exists() else path.absolute()


def _right_answers(answers: pd.DataFrame, truth: pd.DataFrame) -> pd.Series:
    """Return the published answer to each row, empty where there is none."""
    keys = answers.assign(network=_unpacked(answers["onnx"]), property=_unpacked(answers["vnnlib"]))
    return keys.merge(truth, "left", ["network", "property"])["published"].fillna("")


def _unpacked(paths: pd.Series) -> pd.Series:
    return base_names(paths).str.removesuffix(".gz")


if __name__ == "__main__":
    raise SystemExit(main())
