"""Parse and run the commands.

A command's module has a docstring, `arguments(parser)`, which adds arguments, and `main(options)`, which returns the
exit status. The parser is argparse's, which needs no time to import.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from harness.common.errors import InputError, Stopped, require
from harness.common.masking import mask_secrets
from harness.common.terminal import replace_unprintable, say

OK, FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
STATUSES = {
    OK: "everything that was asked for is done",
    FAILED: "something failed or was not confirmed",
    BAD_INPUT: "the request is wrong; nothing was started",
    INTERRUPTED: "stopped by Ctrl-C; the same command continues from what is saved",
    TERMINATED: "stopped by SIGTERM; the same command continues from what is saved",
}
"""What the exit status of each command means."""

COMMANDS = {
    "run": "train and certify every trial of a sweep, log them, write the leaderboard",
    "tables": "write leaderboards and pages of sweeps, compare rows, or show the state of trials",
    "publish": "copy a sweep's results to results/published, small enough for git",
    "recheck": "prove a sweep's verdicts again, with separate code",
    "export": "write a network and its images as ONNX and VNN-LIB, for other verifiers",
    "benchmark": "measure what training steps and bounds cost on this machine",
}
"""What each command does; `python -m harness.NAME` is the module harness/NAME.py."""

REMOVED = {
    "certify": "`evaluation` of the sweep file: harness.run SWEEP.yaml --set evaluation...; docs/evaluate-further.md",
    "board": "`python -m harness.tables results/*` writes all studies on one page, results/index.html",
    "convert": "the code of the commit that wrote a directory reads it; published ones: results/ARTEFACTS.md",
    "verify": "`cerdeq.verify` decides a box and a spec of a network of `cerdeq.load_onnx`, see docs/onnx.md",
}
"""Commands that are gone, and what replaces them."""


def exit_if_removed(name: str) -> None:
    """Exit with BAD_INPUT if a command is gone; one line says what replaces it."""
    if name in REMOVED:
        say(f"error: harness.{name} is gone: {REMOVED[name]}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add the option of all commands that read data."""
    parser.add_argument("--data-dir", help="where data sets lie; default: $CERDEQ_DATA, else ./data")


def add_results_dir(parser: argparse.ArgumentParser) -> None:
    """Add the option of all commands that train."""
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="default: results")


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that read a sweep file: the profile, changes, and which trials."""
    profile = "a profile of the sweep file, or 'full'; default: 'cpu' where there is no GPU"
    parser.add_argument("--profile", help=profile)
    add_patterns(parser, "--only", "only trials whose label or key")
    change = "override a key of the sweep file, such as seeds=[0,1] or train.kappa=0.5, after the profile; repeatable"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=change)


def add_sweep_directory(parser: argparse.ArgumentParser) -> None:
    """Add the argument of all commands that read a sweep's results."""
    parser.add_argument("directory", type=Path, help="results/<sweep>")


def add_sweep_directories(parser: argparse.ArgumentParser, several: str) -> None:
    """Add the argument of commands that read several sweeps, too. several: help on what they do with those."""
    what = f"results/<sweep>; {several}"
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIRECTORY", help=what)


def add_patterns(parser: argparse.ArgumentParser, option: str, what: str) -> None:
    """Add an option that takes patterns for `select_by_pattern`. what: such as 'only trials whose label'."""
    text = f"{what} is PATTERN, or matches it; wildcards are *, ? and [...], and [[] is a bracket; may be repeated"
    parser.add_argument(option, action="append", default=[], metavar="PATTERN", help=text)


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that import plugins of results which others may have written."""
    what = "import and trust this module, which trials name as a plugin; may be repeated"
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=what)


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of a command's arguments."""
    module = _module(name)
    parser = argparse.ArgumentParser(
        prog=f"python -m harness.{name}",
        description=module.__doc__,
        epilog="\n".join(["exit status:", *(f"  {status:<5} {meaning}" for status, meaning in STATUSES.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    return parser


def main(name: str, arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status, one of STATUSES."""
    replace_unprintable()
    try:
        Path.home()
    except RuntimeError:
        # A user without HOME and without an entry in passwd, as in containers: torch and Ray fail without a HOME.
        os.environ["HOME"] = "/"
    options = _parse(name, arguments)
    try:
        _check_directories(options)
        with _sigterm_raises_stopped():
            return _module(name).main(options)
    except InputError as error:
        say(mask_secrets(f"error: {error}"), file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # the reader of the output has ended, such as `head`
        sys.stdout = None  # type: ignore[assignment]  # Python would flush it at its end
        return FAILED
    except OSError as error:  # a full disk, a directory that is gone
        say(mask_secrets(f"failed: {error}"), file=sys.stderr)
        return FAILED
    except (Stopped, KeyboardInterrupt) as stop:
        status = TERMINATED if isinstance(stop, Stopped) and stop.signal == signal.SIGTERM else INTERRUPTED
        say(STATUSES[status], file=sys.stderr)
        return status


def _parse(name: str, arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of a command. Exits with 2 for wrong ones; of an unknown one it says which command has it."""
    parser = parser_of(name)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        words = [re.escape(word.partition("=")[0]) for word in unknown if word.startswith("--")]
        usages = {other: parser_of(other).format_usage() for other in COMMANDS if words}
        owners = [other for other, usage in usages.items() if re.search(rf"\[({'|'.join(words)})[\] ]", usage)]
        hint = f"; python -m harness.{' and harness.'.join(owners)} has such an option" if owners else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


@contextmanager
def _sigterm_raises_stopped() -> Iterator[None]:
    """Within, SIGTERM ends the command as Ctrl-C does: with its clean-up, a line and a status."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _module(name: str) -> Any:
    return import_module(f"harness.{name}")


def _check_directories(options: argparse.Namespace) -> None:
    """Raise InputError for an address instead of a directory.

    A directory of data sets that is named must be there: only the default one is made.
    """
    given = vars(options)
    if "data_dir" in given:
        option = "--data-dir" if options.data_dir else "CERDEQ_DATA"
        named = options.data_dir or os.environ.get("CERDEQ_DATA")
        is_there = not named or Path(named).expanduser().is_dir()
        require(option, named, is_there, "a directory that exists; without either it is ./data, which is made")
    for path in [given.get("directory"), *given.get("directories", []), given.get("results_dir")]:
        if re.match(r"\w+:/", str(path)):
            raise InputError(f"{path} is an address: give a directory, such as one where that storage is mounted")
