"""`python -m harness.publish results/<sweep>`: copy a sweep's results to results/published, small enough for git.

The copy has the leaderboard, a table of all finished evaluations, one of their verdicts, and the files of each
network: config, epochs, how a search chose it, and of each evaluation result and verdicts (widths of bounds in single
precision). With --weights it also has the weights, counterexamples and certificates by which `harness.recheck` proves
the verdicts. A study published before under that name is replaced, except its README.md, sweep files, scripts and
.svg; it stays as it was where anything fails. If the
command is killed, the old study is left beside it under a hidden name, and the next call says so.

Once a commit holds the copy, `python -m harness.publish results/published/<sweep> --tables-of COMMIT` removes all but
the tables and these. A line in results/ARTEFACTS.md names the commit that brings the rest back.
"""

import argparse
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from harness import command_line
from harness.command_line import OK, add_patterns, add_sweep_directory
from harness.common import names
from harness.common.errors import InputError, require
from harness.common.patterns import select_by_pattern
from harness.common.terminal import new_console
from harness.leaderboard.files import write_leaderboard
from harness.storage import artefacts, folder, parquet, study_tables
from harness.storage.files import make_directory
from harness.storage.parquet import write_table
from harness.storage.records import Result
from harness.storage.state import State, evaluation_dirs, read_state_or_raise

LIMIT_MIB = 120
_TARGET = Path("results/published")
_TABLES = ("leaderboard.md", "leaderboard.csv", "leaderboard.json", study_tables.EVALUATIONS, study_tables.VERDICTS)
_WRITTEN = ("README.md", "*.yaml", "*.py", "*.svg")
"""What people write beside the tables: the page, sweep files, scripts, figures."""
_NETWORK_FILES = (folder.TRAINING, folder.STUDY, folder.EPOCHS, folder.CHOSEN)
_PROOF_FILES = (folder.COUNTEREXAMPLES, folder.CERTIFICATES)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_sweep_directory(parser)
    parser.add_argument("--to", type=Path, default=_TARGET, help=f"default: {_TARGET}")
    add_patterns(
        parser, "--weights", "also copy weights, counterexamples and certificates of networks whose label or key"
    )
    what = "remove all but the tables of a published study; this commit has the rest, and results/ARTEFACTS.md names it"
    parser.add_argument("--tables-of", metavar="COMMIT", help=what)


def main(options: argparse.Namespace) -> int:
    """Return the exit status. Raises InputError if no evaluation has finished, or if the copy exceeds LIMIT_MIB."""
    if options.tables_of is not None:
        return _leave_tables(options)
    target = options.to / options.directory.resolve().name
    directory = target.resolve()
    require("--to", options.to, directory != options.directory.resolve(), "another directory than the study's own")
    may_replace = not directory.exists() or not any(directory.iterdir()) or _is_published(directory)
    require("--to", options.to, may_replace, f"a directory whose {target.name} is empty, absent or a published study")
    network_dirs = folder.network_folders(options.directory)
    states = {path: read_state_or_raise(path) for path in evaluation_dirs(options.directory)}
    finished: dict[Path, list[Path]] = {}
    for path, state in states.items():
        if state.state is State.FINISHED:
            finished.setdefault(folder.network_of(path), []).append(path)
    if not finished:
        raise InputError(f"{options.directory} holds no finished evaluation of today's version")
    configs = {path: folder.read_training(path / folder.TRAINING).config for path in finished}
    network_names = {path: config.names(path.name) for path, config in configs.items()}
    proved = select_by_pattern("--weights", options.weights, network_names)
    bare = [configs[path].label for path in proved if not (path / folder.WEIGHTS).exists()]
    if bare:
        raise InputError(f"--weights: these networks have no stored weights: {', '.join(bare)}")
    with _replaced(directory):
        for path, evaluated in finished.items():
            _copy(path, evaluated, folder.network_dir(directory, path.name), path in proved)
        write_leaderboard(directory)
        study_tables.write_study_tables(directory, directory)
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        if size > LIMIT_MIB * 2**20:
            raise InputError(
                f"the copy would have {size / 2**20:.1f} MiB, the limit is {LIMIT_MIB} MiB: select fewer --weights"
            )
    left_out = len(network_dirs) - len(finished)
    console = new_console()
    console.print(f"{len(finished)} networks, {left_out} unfinished ones skipped, {len(proved)} with their weights")
    console.print(str(target))
    return OK


def _leave_tables(options: argparse.Namespace) -> int:
    """Record the commit that holds a published study's files, then remove all but its tables."""
    study, commit = options.directory, options.tables_of
    require(
        "--tables-of", commit, not options.weights and options.to == _TARGET, "neither --weights nor --to beside it"
    )
    require("directory", study, _is_published(study), "a published study, such as results/published/<sweep>")
    if folder.network_folders(study):
        study_tables.write_study_tables(study, study)
    kept = {study / name for name in _TABLES}.union(_written(study))
    others = [path for path in study.rglob("*") if path.is_file() and path not in kept]
    missing = artefacts.missing_files(study, commit, others)
    allowed = f"a commit that holds these files as they are: {', '.join(missing[:5])}"
    require("--tables-of", commit, not missing, allowed)
    artefacts.write_archive_line(study, commit)
    for path in others:
        path.unlink()
    for path in [path for path in study.iterdir() if path.is_dir()]:
        shutil.rmtree(path)
    new_console().print(f"{study}: {len(others)} files removed; {artefacts.PAGE} names {commit}")
    return OK


def _is_published(directory: Path) -> bool:
    """Return whether a directory is a study that this command wrote: results of a run have logs, too."""
    return (directory / study_tables.EVALUATIONS).is_file() and not any(directory.glob(f"**/{folder.LOG}"))


def _written(study: Path) -> list[Path]:
    """Return what people wrote beside a study's tables."""
    return [path for pattern in _WRITTEN for path in study.glob(pattern)]


@contextmanager
def _replaced(directory: Path) -> Iterator[None]:
    """Within, the directory has only what people wrote beside the tables; all it held comes back where anything fails.

    Raises InputError where a killed command has left what it held.
    """
    before = directory.with_name(f".{directory.name}.before")
    if before.exists():
        advice = f"remove it if {directory} has a {study_tables.VERDICTS}, else move it there"
        raise InputError(f"{before} was put aside by a command that was killed: {advice}")
    make_directory(directory.parent)
    if directory.exists():
        directory.rename(before)
    try:
        make_directory(directory)
        _copy_files(before, directory, [path.name for path in _written(before)])
        yield
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        if before.exists():
            before.rename(directory)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _copy(network_dir: Path, evaluated: list[Path], to: Path, with_proofs: bool) -> None:
    """Copy a network and its finished evaluations, without the path of its data, which says nothing elsewhere."""
    to.mkdir(parents=True)
    trained = folder.read_trained(network_dir)
    assert trained is not None
    if with_proofs:
        folder.read_trained_weights(network_dir)
    folder.write_trained(to, _without_path(trained))
    _copy_files(network_dir, to, [*_NETWORK_FILES, *([folder.WEIGHTS] if with_proofs else [])])
    for source in evaluated:
        copy = to / source.relative_to(network_dir)
        copy.mkdir(parents=True)
        result = read_state_or_raise(source).result
        assert result is not None
        verdicts = parquet.read_verdicts(source)
        folder.check_verdicts(source, result)
        write_table(copy / folder.VERDICTS, verdicts.astype({names.WIDTH: "float32"}))
        folder.write_result(copy, _without_path(result))
        _copy_files(source, copy, [folder.EVALUATION, *(_PROOF_FILES if with_proofs else ())])


def _without_path(result: Result) -> Result:
    return replace(result, data=result.data | {"directory": None})


def _copy_files(source: Path, to: Path, files: Iterable[str]) -> None:
    for name in files:
        if (source / name).exists():
            shutil.copyfile(source / name, to / name)


if __name__ == "__main__":
    raise SystemExit(command_line.main("publish"))
