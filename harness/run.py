"""Train and certify every trial of a sweep, log them to MLflow, write the leaderboard.

After a stop by Ctrl-C, SIGTERM or a kill, the same command continues: trials go on from their last checkpoints, which
are written each half minute, at the end of an epoch. Finished trials stay as they are; failed ones run again last,
unless they would fail again.
"""

import argparse
import os
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from harness import command_line
from harness.command_line import FAILED, OK, add_data_dir, add_sweep_options
from harness.common.errors import SettingError, require
from harness.common.terminal import announced, say
from harness.config.file import read_file
from harness.storage import folder
from harness.storage.lock import HeldError, lock_directory
from harness.storage.sweep_file import SWEEP

# What imports torch is imported late: a wrong file is refused within a second.


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "files",
        type=Path,
        nargs="*",
        metavar="SWEEP.yaml",
        help="a sweep file; without one, those in sweeps/ are listed",
    )
    add_sweep_options(parser)
    add_data_dir(parser)
    where = "default: where a sweep.yaml of results lies, else results"
    parser.add_argument("--results-dir", type=Path, help=where)
    parser.add_argument(
        "--tracking-uri", help="MLflow store or server; default: $MLFLOW_TRACKING_URI, else ./mlflow.db"
    )
    parser.add_argument(
        "--ray-address",
        default=os.environ.get("RAY_ADDRESS"),
        help="a running Ray cluster; default: $RAY_ADDRESS, else this machine",
    )
    dry_run = "show which trials would run and an estimate of the time; starts and writes nothing"
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    parser.add_argument(
        "--max-concurrent", type=int, metavar="N", help="run at most N trials at a time; default: all that fit"
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop the sweep after the first failed trial")
    here = "run in this process, one network after the other, without Ray"
    parser.add_argument("--here", action="store_true", help=here)
    parser.add_argument("--dashboard", action="store_true", help="also start Ray's dashboard; needs ray[default]")
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="also retry trials whose failure would repeat (loss not finite, contradicting bounds)",
    )


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        InputError: wrong input; nothing was started.
        Stopped, KeyboardInterrupt: a signal came.
    """
    if not options.files:
        return _list_sweeps()
    count = options.max_concurrent
    require("--dashboard", True, not (options.here and options.dashboard), "a run under Ray, without --here")
    require("--max-concurrent", count, count is None or count > 0, "a whole number from 1")
    if options.files[0].suffix == ".json":
        instead = "a sweep file *.yaml; to train networks of it again: SWEEP.yaml --here --only KEY --results-dir again"
        raise SettingError("SWEEP.yaml", str(options.files[0]), instead)
    require("SWEEP.yaml", " ".join(map(str, options.files)), len(options.files) == 1, "one sweep file alone")

    @cache
    def find_machines() -> list[dict[str, float]]:
        from harness.work.machines import machines_at

        return machines_at(None if options.here else options.ray_address)

    def has_gpu() -> bool:
        return any(machine["GPU"] for machine in find_machines())

    with announced("reads the file"):
        file = read_file(options.files[0], options.profile, has_gpu, options.set)
    is_of_results = file.sweep.ran is not None and options.results_dir is None
    sweep_dir = file.path.parent if is_of_results else (options.results_dir or Path("results")) / file.sweep.name
    sweep_dir = sweep_dir.absolute()
    is_own = file.sweep.ran is None and file.path.absolute() == sweep_dir / SWEEP
    require("SWEEP.yaml", str(file.path), not is_own, f"a file of your own elsewhere: harness.run writes {SWEEP} here")
    with ExitStack() as stack:
        is_alone = not options.dry_run
        try:
            if is_alone:
                stack.enter_context(lock_directory(sweep_dir))
        except HeldError as error:
            if not options.here:
                raise
            is_alone = False  # jobs of an array may run other trials at the same time
            say(f"{error}; without MLflow and {folder.REPORT}, which the same command adds once that run has ended")
        with announced("loads packages and data"):
            from harness.run_sweep import SweepRun

            sweep = SweepRun(file, sweep_dir, is_alone, options)
        return OK if sweep.run(find_machines()) else FAILED


def _list_sweeps() -> int:
    """Print the sweep files of sweeps/ with their first line; return the exit status.

    Raises InputError where there are none.
    """
    files = sorted(Path("sweeps").glob("*.yaml"))
    require("SWEEP.yaml", "none", bool(files), "a sweep file; there is no sweeps/ here to list")
    for file in files:
        say(f"{file}: {file.read_text().partition(chr(10))[0].removeprefix('# ')}")
    return OK


if __name__ == "__main__":
    raise SystemExit(command_line.main("run"))
