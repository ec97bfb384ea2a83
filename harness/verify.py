"""Decide VNN-LIB properties of ONNX networks: one property, or all instances of a competition's CSV file.

The answer is sat (an input satisfies the property: a counterexample was found and confirmed), unsat (it is proved that
no input does), unknown or timeout. For a CSV file (onnx,vnnlib,timeout; paths relative to it) the command writes
instances/ and results.csv into the results directory, and the same command continues after a stop.
"""

import argparse
import math
from pathlib import Path

from harness import command_line
from harness.command_line import OK
from harness.errors import require
from harness.storage.files import write_text
from harness.terminal import new_console, printable

# Torch and Ray take seconds to import: what needs them is imported late.
_DEFAULT_SECONDS = 60.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    files = "NETWORK.onnx PROPERTY.vnnlib, or INSTANCES.csv; properties may be packed (.vnnlib.gz)"
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help=files)
    seconds = "seconds of each instance; default: 60, or the third column of the CSV file"
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help=seconds)
    output = "for one property: write the answer to this file, as the competition does, and print its first line alone"
    parser.add_argument("--output", type=Path, metavar="FILE", help=output)
    parser.add_argument(
        "--results-dir", type=Path, metavar="DIRECTORY", help="for a CSV file: default: results/<its name>"
    )
    parser.add_argument("--workers", type=int, help="for a CSV file: instances at a time; default: one a core or GPU")


def main(options: argparse.Namespace) -> int:
    """Decide one property, or all of a CSV file; returns the exit status. Raises InputError."""
    seconds, workers = options.timeout, options.workers
    require("--timeout", seconds, seconds is None or (0 < seconds < math.inf), "a number above 0")
    require("--workers", workers, workers is None or workers > 0, "a number above 0")
    if len(options.files) == 1:
        require("--output", options.output, options.output is None, "with one property only; see --results-dir")
        from harness.properties.instances import solve_instances

        return solve_instances(options.files[0], options.results_dir, seconds, workers, new_console())
    names = list(map(str, options.files))
    require("FILE", names, len(names) == 2, "NETWORK.onnx PROPERTY.vnnlib, or INSTANCES.csv")
    for option, value in (("--results-dir", options.results_dir), ("--workers", workers)):
        require(option, value, value is None, "with a CSV file only")
    network, property_path = options.files
    return _solve_one(network, property_path, _DEFAULT_SECONDS if seconds is None else seconds, options.output)


def _solve_one(network: Path, property_path: Path, seconds: float, output: Path | None) -> int:
    from harness.properties.solve import solve_files

    answer = solve_files(network, property_path, seconds)
    if output is not None:
        write_text(output, answer.to_text())
    print(answer.status if output is not None else answer.to_text().rstrip())
    details = [f"{answer.seconds:.1f} s", f"{answer.branches} branches", *filter(None, [answer.detail])]
    new_console().print(printable(f"; {', '.join(details)}"), markup=False, soft_wrap=True)
    return OK


if __name__ == "__main__":
    raise SystemExit(command_line.main("verify"))
