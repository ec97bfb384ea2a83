"""`python -m harness.recheck results/<sweep>`: prove a sweep's verdicts again from stored weights, images and labels.

The checker computes in NumPy, float64, with every rounding error counted outwards. It shares with what it checks the
networks' modules, configs, data, the reading of files, and tracing (`cerdeq.bounds.trace`, which lists a network's
steps). docs/soundness.md lists all of it. The check of leaderboards calls the code that writes them. The checker
confirms

- predictions, and examples that IBP certified, by intervals;
- examples that later stages certified, by linear bounds or by the leaves of a certificate;
- falsified examples, by the stored counterexample.

A verdict without a proof is not confirmed. The command checks verdicts of all evaluations, the errors computed from
them and leaderboards, not widths, times or the recipe. It names what is unfinished, damaged or not checked, and checks
the rest. User code runs only if --plugin names it. Exit
status: 0 if everything is confirmed, 1 if not, 2 for bad input.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness import command_line
from harness.checker import folders
from harness.command_line import FAILED, OK, add_data_dir, add_patterns, add_plugins, add_sweep_directory
from harness.common.errors import InputError, describe_error, require
from harness.common.patterns import select_by_pattern
from harness.common.terminal import new_console, print_table, printable
from harness.config import plugins
from harness.config.training import Training
from harness.storage import folder

# What imports torch or pandas is imported late: it takes seconds.
if TYPE_CHECKING:
    from harness.checker.evaluation import RecheckResult
    from harness.checker.processes import LoadData

_SHOWN = 5  # problems of a folder


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_sweep_directory(parser)
    add_patterns(parser, "--only", "only networks whose label or key")
    parser.add_argument("--images", type=int, help="recheck only the first IMAGES images; default: all")
    add_plugins(parser)
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Run the command and return the exit status. Raises InputError where nothing can be checked."""
    require("--images", options.images, options.images is None or options.images >= 1, "at least 1")
    verdict_dirs = folders.find_folders(options.directory)
    trusted = list(dict.fromkeys(options.plugin))
    plugins.trust(trusted, [options.directory])
    if not verdict_dirs:
        from harness.storage import study_tables

        tables = (options.directory / study_tables.EVALUATIONS).exists()
        advice = ". It has tables alone: results/ARTEFACTS.md says how to get its weights" if tables else ""
        raise InputError(f"{options.directory} holds no networks: no {folder.NETWORKS}/<key>{advice}")
    configs, labels = _read_labels(list(verdict_dirs))
    network_dirs = list(verdict_dirs)
    if options.only:
        network_names = {
            path: configs[path].names(path.name) if path in configs else (path.name,) for path in verdict_dirs
        }
        network_dirs = select_by_pattern("--only", options.only, network_names)
    from harness.checker.processes import make_loader, recheck_all

    load_data = make_loader(options.data_dir)
    _load_data_sets([configs[path] for path in network_dirs if path in configs], load_data)
    rows, lines, results = list[list[str]](), list[str](), list["RecheckResult"]()
    checked = [each for path in network_dirs for each in verdict_dirs[path] or [path / folder.EVALUATIONS / "none"]]
    counts = {path: _count_images(path, load_data, options.images) for path in checked}
    for path, (result, seconds) in zip(checked, recheck_all(counts, load_data, options.data_dir, trusted), strict=True):
        label = ", ".join(filter(None, [labels[folder.network_of(path)], _describe_evaluation(path)]))
        results.append(result)
        errors = (f"{result.recorded:.2f}", f"{result.confirmed:.2f}") if result.images else ("-", "-")
        images = f"{result.images:,}" if result.is_complete else f"{result.images:,} of {result.of:,}"
        rows.append([label, images, *errors, f"{seconds:.0f}"])
        lines += [f"{label}: {line}" for line in _describe(result)]
    others = [] if options.only else check_leaderboard(options.directory)
    console = new_console()
    print_table(console, ["network", "images", "recorded", "confirmed", "seconds"], rows)
    console.print("recorded, confirmed: certified error in percent; what is not confirmed counts as an error")
    summary = _summary(results, others, is_selection=bool(options.only))
    trust = f"; trusted plugins: {', '.join(trusted)}" if trusted else ""  # each import has named the file
    for line in [*lines, *others, summary + trust]:
        console.print(printable(line))
    return OK if not others and all(result.is_confirmed for result in results) else FAILED


def check_leaderboard(sweep_dir: Path) -> list[str]:
    """Check that the leaderboard's files are those that the results give."""
    from harness.leaderboard.changed import changed_files

    advice = f"changed, or older than the results; `python -m harness.tables {sweep_dir}` writes it again"
    try:
        return [f"{path.name} does not follow from the results: {advice}" for path in changed_files(sweep_dir)]
    except Exception as error:  # files may hold anything
        return [f"the leaderboard is not checked: {describe_error(error)}"]


def _describe_evaluation(verdict_dir: Path) -> str:
    """Return the description of an evaluation, its folder's name if that cannot be read."""
    try:
        return folder.read_evaluation(verdict_dir).config.description
    except InputError:  # which the recheck of the folder names
        return verdict_dir.name


def _read_labels(network_dirs: list[Path]) -> tuple[dict[Path, Training], dict[Path, str]]:
    """Return the configs that can be read, and all labels with keys: where there is no config, the folder's name."""
    configs = {}
    for network_dir in network_dirs:
        try:
            configs[network_dir] = folder.read_training(network_dir / folder.TRAINING).config
        except InputError:  # which the recheck of the folder names
            continue
    return configs, {
        path: f"{configs[path].label} ({path.name})" if path in configs else path.name for path in network_dirs
    }


def _load_data_sets(configs: list[Training], load_data: "LoadData") -> None:
    """Load the data sets of all networks. Raises InputError if none can be loaded."""
    sources, errors = dict.fromkeys(config.data_source for config in configs), list[InputError]()
    for source in sources:
        try:
            load_data(source)
        except InputError as error:
            errors.append(error)
    if errors and len(errors) == len(sources):
        raise errors[0]


def _count_images(verdict_dir: Path, load_data: "LoadData", limit: int | None) -> int | None:
    """Return how many images of an evaluation are checked; None if it cannot be read, which its recheck says."""
    from harness.evaluation.ranges import evaluated_images

    try:
        config = folder.read_training(folder.network_of(verdict_dir) / folder.TRAINING).config
        evaluation = folder.read_evaluation(verdict_dir).config
        count = len(evaluated_images(load_data(config.data_source), config.validation_images, evaluation))
    except InputError:
        return None
    return count if limit is None else min(count, limit)


def _describe(result: "RecheckResult") -> Iterator[str]:
    """Yield what proved the verdicts of each stage, and the first problems."""
    for stage in dict.fromkeys(stage for stage, _ in result.proofs):
        counts = {proved_by: count for (of, proved_by), count in result.proofs.items() if of == stage}
        ways = ", ".join(f"{count} by {proved_by}" for proved_by, count in counts.items() if proved_by) or "none"
        yield f"of {sum(counts.values())} certified by {stage}, confirmed: {ways}"
    yield from result.problems[:_SHOWN]
    if len(result.problems) > _SHOWN:
        yield f"and {len(result.problems) - _SHOWN} more"


def _summary(results: list["RecheckResult"], others: list[str], is_selection: bool) -> str:
    """Return the last line of the output. others: problems outside of evaluations."""
    failed, missing = sum(not result.is_confirmed for result in results), sum(not r.has_weights for r in results)
    parts = []
    if failed:
        without = f" ({missing} without weights)" if missing else ""
        parts.append(f"{failed} of {len(results)} evaluations{without}")
    if others:
        parts.append(f"{len(others)} problem{'s' if len(others) > 1 else ''} outside of evaluations")
    if parts:
        return f"not confirmed: {'; '.join(parts)}"
    images = "" if all(result.is_complete for result in results) else " of the checked images"
    trials = " of the selected networks" if is_selection else ""
    return f"every verdict{images}{trials} is confirmed"


if __name__ == "__main__":
    raise SystemExit(command_line.main("recheck"))
