"""`python -m harness.recheck results/<sweep>`: prove a sweep's verdicts again from stored weights, images and labels.

The checker computes in NumPy, float64, with every rounding error counted outwards. It shares no code with training and
evaluation except the definitions of networks and the reading of files. It confirms

- predictions, and examples that IBP certified, by intervals;
- examples that later stages certified, by linear bounds or by the leaves of a certificate;
- falsified examples, by the stored counterexample.

A verdict without a proof is not confirmed. Certifications by `harness.certify` are rechecked like trials. The command
checks verdicts and the errors computed from them, not widths, times or the recipe. Exit status: 0 if all checked
verdicts and errors are confirmed, 1 if one is not, 2 for bad input.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness import command_line
from harness.command_line import FAILED, OK, add_data_dir, add_patterns, add_sweep_directory, select_by_pattern
from harness.config.plugins import load_for
from harness.config.trial import labels
from harness.errors import InputError, require
from harness.storage import certification, folder
from harness.terminal import new_console, print_table

if TYPE_CHECKING:
    from harness.checker.verdicts import RecheckResult

_SHOWN = 5  # problems of a folder


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_sweep_directory(parser)
    add_patterns(parser, "--only", "only trials whose label or key")
    parser.add_argument("--images", type=int, help="recheck only the first IMAGES images of each trial; default: all")
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Run the command and return the exit status. Raises InputError without finished trials or with damaged files."""
    from harness.checker.verdicts import recheck  # imports torch

    require("--images", options.images, options.images is None or options.images >= 1, "at least 1")
    verdict_dirs = _find_verdict_dirs(options.directory)
    if not verdict_dirs:
        raise InputError(f"{options.directory} holds no finished trial")
    configs = [folder.read_trial(trial_dir / folder.TRIAL).config for trial_dir in verdict_dirs]
    trial_labels = dict(zip(verdict_dirs, labels(configs), strict=True))
    trial_dirs = list(verdict_dirs)
    if options.only:
        trial_names = {trial_dir: (label, trial_dir.name) for trial_dir, label in trial_labels.items()}
        trial_dirs = select_by_pattern("--only", options.only, trial_names)
    for trial_dir in trial_dirs:  # all of them first: user code may be missing
        load_for(folder.read_trial(trial_dir / folder.TRIAL).config)
    rows, lines, results = list[list[str]](), list[str](), list["RecheckResult"]()
    for trial_dir in trial_dirs:
        for verdict_dir in verdict_dirs[trial_dir]:
            label = trial_labels[trial_dir] + (f", {verdict_dir.name}" if verdict_dir != trial_dir else "")
            started = time.monotonic()
            result = recheck(verdict_dir, options.data_dir, options.images)
            results.append(result)
            numbers = f"{result.recorded:.2f}", f"{result.confirmed:.2f}", f"{time.monotonic() - started:.0f}"
            images = f"{result.images:,}" if result.is_complete else f"{result.images:,} of {result.of:,}"
            rows.append([label, images, *numbers])
            lines += [f"{label}: {line}" for line in _describe(result)]
    console = new_console()
    print_table(console, ["trial", "images", "recorded", "confirmed", "seconds"], rows)
    console.print("recorded, confirmed: certified error in percent; what is not confirmed counts as an error")
    for line in [*lines, _summary(results)]:
        console.print(line, markup=False, soft_wrap=True)
    return OK if all(result.is_confirmed for result in results) else FAILED


def _find_verdict_dirs(sweep: Path) -> dict[Path, list[Path]]:
    """Return by each trial's folder those with finished verdicts: itself and its certifications."""
    verdict_dirs = {}
    for trial_dir in folder.trial_folders(sweep):
        candidates = [trial_dir, *certification.folders(trial_dir)]
        if finished := [path for path in candidates if folder.read_result(path) is not None]:
            verdict_dirs[trial_dir] = finished
    return verdict_dirs


def _describe(result: "RecheckResult") -> Iterator[str]:
    """Yield what proved the verdicts of each stage, and the first problems."""
    for stage in dict.fromkeys(stage for stage, _ in result.proofs):
        counts = {proved_by: count for (of, proved_by), count in result.proofs.items() if of == stage}
        ways = ", ".join(f"{count} by {proved_by}" for proved_by, count in counts.items() if proved_by) or "none"
        yield f"of {sum(counts.values())} certified by {stage}, confirmed: {ways}"
    yield from result.problems[:_SHOWN]
    if len(result.problems) > _SHOWN:
        yield f"and {len(result.problems) - _SHOWN} more"


def _summary(results: "list[RecheckResult]") -> str:
    """Return the last line of the output."""
    if failed := sum(not result.is_confirmed for result in results):
        missing = sum(not result.has_weights for result in results)
        return f"not confirmed: {failed} of {len(results)}" + (f", {missing} for lack of weights" if missing else "")
    checked = "" if all(result.is_complete for result in results) else " of the checked images"
    return f"every verdict{checked} is confirmed"


if __name__ == "__main__":
    raise SystemExit(command_line.main("recheck"))
