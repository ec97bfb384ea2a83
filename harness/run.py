"""Train and certify every trial of a sweep, log them to MLflow, write the leaderboard.

After a stop, the same command continues. Finished trials stay as they are; failed ones run again last, unless they
would fail again. Ctrl-C once stops each running trial after its epoch, twice stops at once; both keep what is saved.
"""

import argparse
import os
from pathlib import Path

from harness import command_line
from harness.command_line import FAILED, OK, add_data_dir, add_results_dir, add_sweep_options
from harness.common.errors import Stopped, require
from harness.common.terminal import new_console
from harness.config.file import check_keys


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("sweep", type=Path, help="a sweep file, sweeps/*.yaml")
    add_sweep_options(parser)
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
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="also retry trials whose failure would repeat (loss not finite, contradicting bounds)",
    )


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        InputError: wrong input; nothing was started.
        Stopped: a signal has stopped the trials.
        KeyboardInterrupt: a second Ctrl-C, or one after SIGTERM.
    """
    count = options.max_concurrent
    require("--max-concurrent", count, count is None or count > 0, "a whole number from 1")
    file = check_keys(options.sweep, options.profile, options.set)  # wrong keys fail before seconds of imports
    from harness.checker.images import describe_unreadable
    from harness.machine.environment import data_directory
    from harness.storage import folder
    from harness.storage.lock import lock_directory
    from harness.tune.planned_sweep import PlannedSweep, check_owner, check_reserved, load_checked, machines_at
    from harness.tune.status import print_header, print_plan
    from harness.tune.workers import RayOptions

    console = new_console()
    machines = machines_at(options.ray_address)
    has_gpu = any(machine["GPU"] for machine in machines)
    sweep, data = load_checked(file, has_gpu, options.results_dir, options.data_dir, writes=not options.dry_run)
    for warning in [*sweep.warnings, *describe_unreadable(sweep.trials)]:
        console.print(f"warning: {warning}", soft_wrap=True)
    gpu = sweep.resources.gpu if has_gpu else 0
    check_reserved(sweep, gpu, machines, file)
    sweep_dir = (options.results_dir / sweep.name).absolute()
    check_owner(sweep_dir, sweep)
    ray = RayOptions(
        cpu=sweep.resources.cpu,
        gpu=gpu,
        data_dir=str(data_directory(options.data_dir).absolute()),  # workers have another working directory
        address=options.ray_address,
        at_once=options.max_concurrent,
    )
    lacks_candidates = False
    if sweep.search is not None:
        from harness.tune.run_sweep import run_search

        require("--only", options.only, not options.only, "a sweep without `search`, whose trials are in its file")
        winners = run_search(sweep, sweep_dir, ray, options, console)
        if winners is None:
            return OK if options.dry_run else FAILED
        sweep, lacks_candidates = winners
    plan = PlannedSweep.of(sweep, data, sweep_dir, options.only)
    if options.dry_run:
        print_header(plan, ray.gpu, options.profile, console)
        print_plan(plan, options.retry_failed, options.ray_address, console)
        return OK
    from harness.tune.run_sweep import run_sweep  # here: it imports MLflow, which a dry run does without

    with lock_directory(sweep_dir):
        outcome = run_sweep(plan, ray, options, console)
        page = sweep_dir / folder.REPORT
        if outcome.has_changed or not page.exists():
            from harness.report.sweep_page import write_page  # here, since a finished sweep needs no figures

            write_page(outcome.leaderboard, outcome.summaries, options.data_dir)
        console.print(f"\nAll results on a page:\n{page}", soft_wrap=True)
    if outcome.is_interrupted:
        raise Stopped
    return OK if outcome.is_complete and not lacks_candidates else FAILED


if __name__ == "__main__":
    raise SystemExit(command_line.main("run"))
