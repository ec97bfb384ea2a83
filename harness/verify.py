"""Decide VNN-LIB properties of ONNX networks: one property, or all instances of a competition's CSV file.

The result is sat (an input satisfies the property: a counterexample was found and confirmed), unsat (it is proved that
no input does), unknown or timeout. For a CSV file (onnx,vnnlib,timeout; paths relative to it) the command writes
instances/ and results.csv into the results directory. instances/ has each result with its counterexample or
certificate; `python -m harness.recheck DIRECTORY` proves them again. Run the same command again after a stop: it
continues.
"""

import argparse
import math
import os
from pathlib import Path

from harness import command_line
from harness.command_line import FAILED, OK
from harness.common.errors import require
from harness.common.terminal import new_console, say, with_plural
from harness.storage.files import write_text

# Torch and Ray take seconds to import: what needs them is imported late.
_DEFAULT_SECONDS = 60.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    files = "NETWORK.onnx PROPERTY.vnnlib, or INSTANCES.csv; both may be packed by gzip"
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help=files)
    seconds = "seconds of each instance; default: 60, or the third column of the CSV file"
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help=seconds)
    output = "for one property: write the result to this file, in VNN-COMP's format; only the status is printed"
    parser.add_argument("--output", type=Path, metavar="FILE", help=output)
    directory = "write results and certificates here, for harness.recheck; default: results/<name of the CSV file>"
    parser.add_argument("--results-dir", type=Path, metavar="DIRECTORY", help=directory)
    at_a_time = "for a CSV file: number of instances at a time; default: the number of GPUs or, without any, of cores"
    parser.add_argument("--workers", type=int, help=at_a_time)


def main(options: argparse.Namespace) -> int:
    """Decide one property, or all of a CSV file; returns the exit status. Raises InputError."""
    seconds, workers, directory, files = options.timeout, options.workers, options.results_dir, options.files
    require("--timeout", seconds, seconds is None or (0 < seconds < math.inf), "a number above 0")
    require("--workers", workers, workers is None or workers > 0, "a number above 0")
    is_complete = len(files) == 2 or (len(files) == 1 and files[0].suffix.lower() not in (".onnx", ".vnnlib", ".gz"))
    require("FILE", list(map(str, files)), is_complete, "NETWORK.onnx PROPERTY.vnnlib, or INSTANCES.csv")
    from harness.machine.device import refuse_reduced_precision

    refuse_reduced_precision()
    if len(files) == 2:
        require("--workers", workers, workers is None, "nothing for a single property; --workers needs a CSV file")
        if directory is None:
            return _solve_one(files[0], files[1], seconds or _DEFAULT_SECONDS, options.output)
    output = None if options.output is None else str(options.output)
    allowed = "nothing with a CSV file or --results-dir: these write one file for each result"
    require("--output", output, output is None, allowed)
    from harness.vnnlib.instances import Instance, read_instances, solve_instances

    if len(files) == 1:
        instances, directory = read_instances(files[0], seconds), directory or Path("results") / files[0].stem
    else:
        for file in files:
            require("FILE", str(file), os.path.isfile(file), "a file that exists")
        network, property_path = (str(file.absolute()) for file in files)
        instances, workers = [Instance(network, property_path, seconds or _DEFAULT_SECONDS)], 1
    return OK if solve_instances(instances, directory, workers, new_console()) else FAILED


def _solve_one(network: Path, property_path: Path, seconds: float, output: Path | None) -> int:
    from harness.vnnlib.solve import solve_files

    result = solve_files(network, property_path, seconds)
    if output is not None:
        write_text(output, result.to_text())
    say(result.status if output is not None else result.to_text().rstrip())
    details = [f"{result.seconds:.1f} s", with_plural(result.branches, "branch"), *filter(None, [result.detail])]
    say(f"; {', '.join(details)}")
    return OK


if __name__ == "__main__":
    raise SystemExit(command_line.main("verify"))
