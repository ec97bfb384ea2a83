"""Evaluate trained networks further, without training: other stages, branch and bound, other eps, more images.

It is what `evaluation` of a sweep file does, for networks that are there: folders of networks, or of sweeps with all of
their networks. Settings without an option are those of the network's main evaluation. Results are sections of the
leaderboard, like all others, and what other evaluations have already proved is taken over. Several processes evaluate
ranges of the images. Run the same command again after a stop: it evaluates the missing ranges. Untrained networks are
left out.
"""

import argparse
import math
from pathlib import Path

from harness import command_line
from harness.command_line import FAILED, OK, add_data_dir, add_patterns, add_plugins
from harness.common import names
from harness.common.errors import InputError, require
from harness.common.radius import parse_radii
from harness.common.terminal import new_console
from harness.config import plugins
from harness.settings import stages_by_setting
from harness.storage import folder

_DEFAULT_SECONDS = 60.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("paths", type=Path, nargs="+", metavar="FOLDER", help="folders of networks or of sweeps")
    add_patterns(parser, "--only", "only networks whose label or key")
    stages = ",".join((names.IBP, names.CROWN_IBP, names.BAB))
    parser.add_argument("--stages", default=stages, help=f"stages of the verifier, in this order; default: {stages}")
    eps = "radii such as 2/255,4/255; default: that of the main evaluation"
    parser.add_argument("--eps", help=eps)
    no_limit = f"{_DEFAULT_SECONDS:g}, or no limit where --branches is given"
    seconds = f"limit of branch and bound for an image, or for its certificate; default: {no_limit}"
    parser.add_argument("--seconds", type=float, help=seconds)
    each = "limit of each other stage for an image; default: that of the main evaluation"
    parser.add_argument("--stage-seconds", type=float, help=each)
    parser.add_argument("--branches", type=int, help="limit of branch and bound for an image; default: no limit")
    certificates = "save certificates of crown, alpha-crown and bab, which harness.recheck checks"
    parser.add_argument("--certificates", action="store_true", help=certificates)
    parser.add_argument(
        "--images", type=int, help="evaluate the first N images; default: as the main evaluation", metavar="N"
    )
    parser.add_argument(
        "--workers", type=int, help="largest number of workers; default: one for each GPU, else for each CPU"
    )
    add_plugins(parser)
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit status. Raises InputError for wrong input; nothing was started."""
    _check_options(options)
    from harness.checker.images import describe_unreadable
    from harness.leaderboard.files import print_leaderboard
    from harness.report import sweep_page
    from harness.tune.certify import EvaluationChanges, certify, plan_evaluations, trained_networks

    console = new_console()
    plugins.trust(options.plugin, [folder.sweep_dir_of(path) for path in options.paths])
    changes = EvaluationChanges(
        stages=tuple(options.stages.split(",")),
        eps=parse_radii(options.eps) if options.eps else (),
        images=options.images,
        seconds=_DEFAULT_SECONDS if options.seconds is None and options.branches is None else options.seconds,
        branches=options.branches,
        stage_seconds=options.stage_seconds,
        certificates=options.certificates,
    )
    records = trained_networks(options.paths, options.only, console)
    planned = plan_evaluations(records, changes, options.data_dir, options.plugin)
    for warning in describe_unreadable(record.config for record in records.values()):
        console.print(f"warning: {warning}")
    is_complete = certify(records, planned, options.data_dir, options.workers, console)
    in_sweeps = [network_dir for network_dir in records if network_dir.parent.name == folder.NETWORKS]
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
        value = getattr(options, name, None)  # the limit for all images is no option here
        if value and stages.isdisjoint(users):
            raise InputError(f"--{name}: needs one of the stages {', '.join(users)} in --stages")


if __name__ == "__main__":
    raise SystemExit(command_line.main("certify"))
