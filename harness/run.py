"""Train and certify every trial of a sweep, log them to MLflow, write the leaderboard.

After a stop by Ctrl-C, SIGTERM or a kill, the same command continues: trials go on from their last checkpoints, which
are written each half minute, at the end of an epoch. Finished trials stay as they are; failed ones run again last,
unless they would fail again.
"""

import argparse
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from harness import command_line
from harness.command_line import FAILED, OK, add_data_dir, add_plugins, add_results_dir, add_sweep_options
from harness.common.errors import InputError, require
from harness.common.terminal import announced, new_console, say
from harness.config import plugins
from harness.config.file import SweepFile, read_file
from harness.storage import folder
from harness.storage.files import refuse_links
from harness.storage.lock import HeldError, lock_directory
from harness.storage.state import State, read_states

if TYPE_CHECKING:
    from harness.tune.run_study import Outcome


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    files = "a sweep file; with --here also files training.json of results, whose networks are trained again"
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
    count = options.max_concurrent
    require("--dashboard", True, not (options.here and options.dashboard), "a run under Ray, without --here")
    require("--max-concurrent", count, count is None or count > 0, "a whole number from 1")
    if options.files[0].suffix == ".json":
        return _run_network_files(options)
    require("--plugin", options.plugin, not options.plugin, "nothing beside a sweep file, whose `plugins` are imported")
    require("SWEEP.yaml", " ".join(map(str, options.files)), len(options.files) == 1, "one sweep file alone")

    @cache
    def find_machines() -> list[dict[str, float]]:
        from harness.tune.machines import machines_at  # here, since it imports torch: a wrong file is refused before

        return machines_at(None if options.here else options.ray_address)

    def has_gpu() -> bool:
        return any(machine["GPU"] for machine in find_machines())

    with announced("reads the file"):
        file = read_file(options.files[0], options.profile, has_gpu, options.set)
    sweep_dir = (options.results_dir / file.sweep.name).absolute()
    refuse_links(sweep_dir)
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
        return _run_sweep_file(file, sweep_dir, find_machines, is_alone, options)


def _run_sweep_file(
    file: SweepFile,
    sweep_dir: Path,
    find_machines: Callable[[], list[dict[str, float]]],
    is_alone: bool,
    options: argparse.Namespace,
) -> int:
    """Check the sweep of a file, run what is left of it, or print that; return the exit status.

    find_machines: called once the file is right, since a cluster may be slow. is_alone: whether this process holds the
    directory, and so logs to MLflow and writes the page.
    """
    with announced("loads packages and data"):
        from harness.checker.images import describe_unreadable  # all here, since they import torch
        from harness.machine.environment import data_directory
        from harness.tune.machines import RayOptions, check_dashboard, check_fits, count_fitting
        from harness.tune.plan import Plan, check_owner, load_checked
        from harness.tune.print_plan import print_header, print_plan
        from harness.tune.run_study import RunOptions, open_mlflow, run_study

        if options.dashboard:
            check_dashboard()
        found = read_states(sweep_dir)
        study, data = load_checked(file, found, options.data_dir, writes=not options.dry_run)
    console, search = new_console(), None
    check_owner(sweep_dir, study, found)
    machines = find_machines()
    cpu, gpu = study.resources.cpu, study.resources.gpu if any(machine["GPU"] for machine in machines) else 0
    with file.located():
        check_fits(machines, cpu, gpu)
    fitting = count_fitting(machines, cpu, gpu)
    at_once = 1 if options.here else min(fitting, options.max_concurrent or fitting)
    ray = RayOptions(cpu, gpu, options.max_concurrent, options.ray_address, options.dashboard)
    run_options = RunOptions(
        ray=None if options.here else ray,
        data_dir=str(data_directory(options.data_dir).absolute()),  # workers have another working directory
        threads=cpu,
        tracking_uri=options.tracking_uri,
        fail_fast=options.fail_fast,
        retry_failed=options.retry_failed,
        logs=is_alone,
    )
    if study.search is not None:
        require("--only", options.only, not options.only, "a sweep without `search`, whose trials are in its file")
        from harness.tune.run_search import Search  # here, since most sweeps need no Optuna

        search = Search(study, data, sweep_dir, console)
        search.show()
        if options.dry_run:
            console.print("its winners become the networks; a dry run: nothing was started or written")
            return OK
        open_mlflow(study.name, run_options, console)  # refuses a wrong store before hours of work
        as_many_as_fit = None if options.here else replace(ray, at_once=at_once)
        study = replace(study, trainings=search.run(replace(run_options, ray=as_many_as_fit)))
        if not study.trainings:
            return FAILED
    plan = Plan.of(study, data, sweep_dir, options.only)
    states = plan.select(found)
    unfinished = [plan.record_of(path) for path, each in states.items() if each.state is not State.FINISHED]
    for warning in [*study.warnings, *data.warnings, *describe_unreadable(record.config for record in unfinished)]:
        console.print(f"warning: {warning}")
    print_header(plan, states, gpu, options.profile, console)
    if options.dry_run:
        print_plan(plan, found, gpu, at_once, options.retry_failed, console)
        return OK
    outcome = run_study(plan, states, run_options, console)
    _write_page(outcome, is_alone, options.data_dir, console)
    is_complete = outcome.is_complete and not (search and search.has_unfinished)
    return OK if is_complete else FAILED


def _write_page(outcome: "Outcome", is_alone: bool, data_dir: str | None, console: Console) -> None:
    """Write the sweep's page, unless it is up to date or another run may write it, and print where it is."""
    sweep_dir = outcome.leaderboard.directory
    page, tables = sweep_dir / folder.REPORT, sweep_dir / "leaderboard.md"  # which is written when it changes
    if is_alone and not (page.exists() and page.stat().st_mtime_ns >= tables.stat().st_mtime_ns):
        with announced("draws the page"):
            from harness.report.sweep_page import write_page  # here, since a finished sweep needs no figures

            write_page(outcome.leaderboard, data_dir)
    if page.exists():
        console.print(f"\nAll results on a page:\n{page}")


def _run_network_files(options: argparse.Namespace) -> int:
    """Train the networks of files training.json again, and return the exit status."""
    require("TRAINING.json", str(options.files[0]), options.here, "a sweep file, or --here as well")
    if options.only or options.set or options.profile:
        raise InputError("--only, --set and --profile: need a sweep file, not training.json files")
    from harness.tune.network_files import run_network_files  # here, since it imports torch

    plugins.trust(options.plugin, [folder.sweep_dir_of(path.parent) for path in options.files])
    is_complete = run_network_files(
        options.files, options.results_dir, options.data_dir, new_console(), trusted=options.plugin
    )
    return OK if is_complete else FAILED


if __name__ == "__main__":
    raise SystemExit(command_line.main("run"))
