"""Certify finished trials further, without training: other stages, branch and bound, more images.

Writes certified/<name>/ into each trial's folder: verdicts and a result, which the leaderboard shows in a section of
their own. Several processes evaluate ranges of the images. Run the same command again after a stop: it evaluates the
missing ranges. Verdicts are the same, except where a time limit ends the search. Unfinished trials are skipped.
"""

import argparse
import math
from pathlib import Path

from harness import command_line
from harness.command_line import FAILED, OK, add_data_dir, add_plugins
from harness.common import names
from harness.common.errors import InputError, require
from harness.common.terminal import new_console
from harness.config import plugins
from harness.settings import stages_by_setting
from harness.storage import folder

_DEFAULT_SECONDS = 60.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("paths", type=Path, nargs="+", metavar="TRIAL_OR_SWEEP", help="folders of trials or of sweeps")
    stages = ",".join((names.IBP, names.CROWN_IBP, names.BAB))
    parser.add_argument("--stages", default=stages, help=f"stages of the verifier, in this order; default: {stages}")
    no_limit = f"{_DEFAULT_SECONDS:g}, or no limit where --branches is given"
    seconds = f"limit of branch and bound for an image, or for its certificate; default: {no_limit}"
    parser.add_argument("--seconds", type=float, help=seconds)
    each = "limit of each other stage for an image; default: as the trial did"
    parser.add_argument("--stage-seconds", type=float, help=each)
    parser.add_argument("--branches", type=int, help="limit of branch and bound for an image; default: no limit")
    certificates = "save certificates of crown, alpha-crown and bab, which harness.recheck checks"
    parser.add_argument("--certificates", action="store_true", help=certificates)
    parser.add_argument(
        "--images", type=int, help="evaluate the first N images; default: as the trial did", metavar="N"
    )
    parser.add_argument(
        "--workers", type=int, help="largest number of workers; default: one for each GPU, else for each CPU"
    )
    add_plugins(parser)
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit status. Raises InputError for wrong input; nothing was started."""
    _check_options(options)
    seconds = _DEFAULT_SECONDS if options.seconds is None and options.branches is None else options.seconds
    from harness.checker.images import describe_unreadable
    from harness.leaderboard.files import print_leaderboard
    from harness.report import sweep_page
    from harness.tune.certify_plan import EvaluationChanges, finished_trials, plan_certifications
    from harness.tune.certify_trials import certify

    console = new_console()
    plugins.trust(options.plugin, [folder.sweep_dir_of(path) for path in options.paths])
    changes = EvaluationChanges(
        stages=tuple(options.stages.split(",")),
        images=options.images,
        seconds=seconds,
        branches=options.branches,
        stage_seconds=options.stage_seconds,
        certificates=options.certificates,
    )
    trials = finished_trials(options.paths, console)
    planned = plan_certifications(trials, changes, options.data_dir, options.plugin)
    for warning in describe_unreadable(each.trial for each in planned):
        console.print(f"warning: {warning}")
    is_complete = certify(planned, options.data_dir, options.workers, console)
    in_sweeps = [each.trial_dir for each in planned if each.trial_dir.parent.name == folder.TRIALS]
    for sweep_dir in dict.fromkeys(map(folder.sweep_dir_of, in_sweeps)):
        print_leaderboard(sweep_page.write_sweep(sweep_dir, options.data_dir), console)
        console.print(sweep_dir / folder.REPORT)
    return OK if is_complete else FAILED


def _check_options(options: argparse.Namespace) -> None:
    """Raise SettingError for impossible numbers, and for options that the stages do not use."""
    for name in ("seconds", "stage_seconds"):
        value = getattr(options, name)
        option = f"--{name.replace('_', '-')}"
        require(option, value, value is None or 0 < value < math.inf, "above 0 and finite")
    for name in ("branches", "images", "workers"):
        value = getattr(options, name)
        require(f"--{name}", value, value is None or value >= 1, "an integer of at least 1")
    stages = set(options.stages.split(","))
    for setting, users in stages_by_setting(options.certificates).items():
        name = setting.removeprefix("bab_")
        value = getattr(options, name, None)  # the limit for a whole trial is no option here
        if value and stages.isdisjoint(users):
            raise InputError(f"--{name}: needs one of the stages {', '.join(users)} in --stages")


if __name__ == "__main__":
    raise SystemExit(command_line.main("certify"))
