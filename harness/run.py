"""Train and certify every trial of a sweep, log them to MLflow, write the leaderboard.

After a stop by Ctrl-C, SIGTERM or a kill, the same command continues: trials go on from their last checkpoints, which
are written each half minute, at the end of an epoch. Finished trials stay as they are; failed ones run again last,
unless they would fail again.
"""

import argparse
import os
from contextlib import nullcontext
from functools import cache
from pathlib import Path

from harness import command_line
from harness.command_line import FAILED, OK, add_data_dir, add_plugins, add_results_dir, add_sweep_options
from harness.common.errors import InputError, require
from harness.common.terminal import new_console, say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    files = "a sweep file; with --here also files trial.json of results, whose trials are trained again"
    parser.add_argument("files", type=Path, nargs="+", metavar="SWEEP.yaml", help=files)
    add_sweep_options(parser)
    add_plugins(parser)
    add_data_dir(parser)
    add_results_dir(parser)
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
    here = "run the trials in this process, one after the other, without Ray and MLflow; not for searches"
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
    count = options.max_concurrent
    require("--max-concurrent", count, count is None or count > 0, "a whole number from 1")
    if options.files[0].suffix == ".json":
        return _run_trial_files(options)
    require("--plugin", options.plugin, not options.plugin, "nothing beside a sweep file, whose `plugins` are imported")
    require("SWEEP.yaml", " ".join(map(str, options.files)), len(options.files) == 1, "one sweep file alone")
    say("loads packages and data")
    from harness.config.file import read_file

    @cache
    def machines() -> list[dict[str, float]]:
        from harness.tune.items import machines_at  # imports torch: a wrong file is refused before

        return machines_at(address)

    def has_gpu() -> bool:
        return any(machine["GPU"] for machine in machines())

    address = None if options.here else options.ray_address
    file = read_file(options.files[0], options.profile, has_gpu, options.set)
    from harness.checker.images import describe_unreadable
    from harness.machine.environment import data_directory
    from harness.storage import folder
    from harness.storage.lock import lock_directory
    from harness.storage.state import State
    from harness.tune.items import RayOptions, count_fitting
    from harness.tune.plan_text import print_header, print_plan
    from harness.tune.planned_sweep import PlannedSweep, check_owner, check_reserved, load_checked

    console = new_console()
    sweep, data = load_checked(file, options.results_dir, options.data_dir, writes=not options.dry_run)
    cpu, gpu = sweep.resources.cpu, sweep.resources.gpu if has_gpu() else 0
    check_reserved(sweep, gpu, machines(), file)
    sweep_dir = (options.results_dir / sweep.name).absolute()
    check_owner(sweep_dir, sweep)
    data_dir = str(data_directory(options.data_dir).absolute())  # workers have another working directory
    ray = RayOptions(cpu, gpu, count, address, options.dashboard)
    lacks_candidates = False
    if sweep.search is not None:
        from harness.tune.run_search import run_search  # here, since most sweeps need no Optuna

        require("--only", options.only, not options.only, "a sweep without `search`, whose trials are in its file")
        require("--here", options.here, not options.here, "a sweep without `search`, which needs Ray")
        winners = run_search(sweep, sweep_dir, ray, data_dir, options, console)
        if winners is None:
            return OK if options.dry_run else FAILED
        sweep, lacks_candidates = winners
    plan = PlannedSweep.of(sweep, data, sweep_dir, options.only)
    states = plan.states()
    unfinished = [plan.trials[trial_dir] for trial_dir, each in states.items() if each.state is not State.FINISHED]
    for warning in [*sweep.warnings, *describe_unreadable(trial.config for trial in unfinished)]:
        console.print(f"warning: {warning}", soft_wrap=True)
    if options.dry_run:
        fitting = count_fitting(machines(), cpu, gpu)
        at_once = 1 if options.here else min(fitting, count or fitting)
        print_header(plan, states, gpu, options.profile, console)
        print_plan(plan, states, gpu, at_once, options.retry_failed, console)
        return OK
    from harness.tune.run_sweep import run_sweep  # here: a dry run does without

    # Jobs of an array may run other trials --here at the same time.
    with nullcontext() if options.here else lock_directory(sweep_dir):
        states = plan.states()  # again: another run may have ended before the lock
        print_header(plan, states, gpu, options.profile, console)
        outcome = run_sweep(plan, states, None if options.here else ray, data_dir, options, console)
        page = sweep_dir / folder.REPORT
        if not options.here and not _is_up_to_date(page, sweep_dir / "leaderboard.md"):
            from harness.report.sweep_page import write_page  # here, since a finished sweep needs no figures

            write_page(outcome.leaderboard, outcome.summaries, options.data_dir)
        if page.exists():
            console.print(f"\nAll results on a page:\n{page}", soft_wrap=True)
    return OK if outcome.is_complete and not lacks_candidates else FAILED


def _is_up_to_date(page: Path, leaderboard: Path) -> bool:
    """Return whether a page was written after the tables, which are written anew only when they change."""
    return page.exists() and page.stat().st_mtime_ns >= leaderboard.stat().st_mtime_ns


def _run_trial_files(options: argparse.Namespace) -> int:
    """Train the trials of files trial.json again, and return the exit status."""
    require("TRIAL.json", str(options.files[0]), options.here, "a sweep file, or --here as well")
    if options.only or options.set or options.profile:
        raise InputError("--only, --set and --profile: need a sweep file, not trial.json files")
    from harness.config import plugins
    from harness.storage import folder
    from harness.tune.trial_files import run_trial_files

    plugins.trust(options.plugin, [folder.sweep_dir_of(path.parent) for path in options.files])
    is_complete = run_trial_files(
        options.files, options.results_dir, options.data_dir, new_console(), trusted=options.plugin
    )
    return OK if is_complete else FAILED


if __name__ == "__main__":
    raise SystemExit(command_line.main("run"))
