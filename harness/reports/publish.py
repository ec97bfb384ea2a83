"""`python -m harness.publish results/<sweep>`: what a sweep found, copied to where it is kept, small enough for git.

Of every finished trial, and of what `harness.certify` found of it: config, epochs, verdicts, with widths of bounds in
single precision, and result; of those that --weights names also the weights, counterexamples and certificates that
`harness.recheck` proves verdicts by. Tables, page and figures are made anew there. A study that was published before
under that name is replaced as a whole, and stays as it was where anything fails or Ctrl-C or SIGTERM ends it. After a
kill it lies beside, under a hidden name: the next time says so, and does nothing else.
"""

import argparse
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harness.command_line import OK, add_data_dir, add_patterns, add_sweep_directory, meant
from harness.config.trial import labels
from harness.errors import InputError, require
from harness.reports import report
from harness.storage import certification, folder, names
from harness.storage.files import make_directory
from harness.storage.parquet import read_table, write_table

LIMIT = 25 * 2**20
_FOUND = (folder.TRIAL, folder.EPOCHS)
_FOUND_FURTHER = (certification.CERTIFICATION, certification.TIMINGS)
_PROOF = (folder.WEIGHTS, folder.COUNTEREXAMPLES, folder.CERTIFICATES)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_sweep_directory(parser)
    parser.add_argument("--to", type=Path, default=Path("results/published"), help="default: results/published")
    add_patterns(parser, "--weights", "keep what proves the verdicts of trials whose label or key")
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises InputError where nothing has finished, or it comes to more than LIMIT bytes."""
    console = Console(highlight=False)
    shown = options.to / options.directory.resolve().name
    target = shown.resolve()
    require("--to", options.to, target != options.directory.resolve(), "another place than that of the study itself")
    places = folder.trial_folders(options.directory)
    finished = [place for place in places if folder.read_result(place) is not None and not folder.is_stale(place)]
    if not finished:
        raise InputError(f"{options.directory} holds no finished trial of today's recipe")
    named = dict(
        zip(finished, labels([folder.read_trial(place / folder.TRIAL).config for place in finished]), strict=True)
    )
    proved = meant("--weights", options.weights, {place: (named[place], place.name) for place in finished})
    bare = [named[place] for place in proved if not (place / folder.WEIGHTS).exists()]
    require("--weights", options.weights, not bare, f"trials that have weights, as these have not: {', '.join(bare)}")
    with _replaced(target):
        for place in finished:
            _copy(place, folder.place(target, place.name), place in proved)
        report.write(target, options.data_dir)
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        require("--weights", options.weights, size <= LIMIT, f"what leaves at most 25 MiB; this is {size / 2**20:.1f}")
    left_out = len(places) - len(finished)
    console.print(f"{len(finished)} trials, {left_out} without a result left out, {len(proved)} with their weights")
    console.print(escape(str(shown)), soft_wrap=True)
    return OK


@contextmanager
def _replaced(target: Path) -> Iterator[None]:
    """Within, the directory is new; what it held comes back where anything fails.

    Raises InputError where a killed command has left what it held.
    """
    before, gone = (target.with_name(f".{target.name}.{word}") for word in ("before", "gone"))
    if before.exists():
        raise InputError(f"{before} was put aside by a command that was killed: move it to {target}, or remove it")
    shutil.rmtree(gone, ignore_errors=True)
    make_directory(target.parent)
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)
    if target.exists():
        target.rename(before)
    try:
        make_directory(target)
        yield
    except BaseException:
        _put_back(before, target)
        raise
    finally:
        signal.signal(signal.SIGTERM, terminate)
    if before.exists():
        before.rename(gone)  # at once: a half of it must not be taken for the whole
        shutil.rmtree(gone)


def _put_back(before: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    if before.exists():
        before.rename(target)


def _copy(place: Path, to: Path, proved: bool) -> None:
    """A trial, and what was found of it later; without the path of its data, which says nothing elsewhere."""
    for source, files in [(place, _FOUND), *((further, _FOUND_FURTHER) for further in certification.folders(place))]:
        result = folder.read_result(source)
        if result is None:
            continue
        there = to / source.relative_to(place)
        there.mkdir(parents=True)
        folder.write_result(there, replace(result, data=result.data | {"directory": None}))
        verdicts = read_table(source / folder.VERDICTS)
        write_table(there / folder.VERDICTS, verdicts.astype({names.WIDTH: "float32"}))
        for name in (*files, *(_PROOF if proved else ())):
            if (source / name).exists():
                shutil.copyfile(source / name, there / name)
