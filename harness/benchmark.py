"""`python -m harness.benchmark`: what training steps and bounds cost on this machine.

steps: training steps of every kind beside plain training of the same network (torch's forward pass, cross entropy and
Adam), which is always measured. Figures are medians. On a GPU each kind compiles for minutes; --kinds selects some.
bounds: how tight each bound is on the trained networks of --trained, what it certifies and takes.
evaluation: what evaluating these networks takes, beside the first of them.
auto_lirpa: CROWN beside auto_LiRPA's, if that can be imported; its training steps are kinds of the section steps.
verifier: small networks near the edge of robustness, decided by branch and bound.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from baselines import DATASETS, network_names
from harness import command_line
from harness.command_line import OK, add_data_dir, add_patterns, add_plugins
from harness.common import names
from harness.common.errors import require
from harness.common.patterns import select_by_pattern
from harness.common.terminal import new_console, print_table
from harness.config import plugins
from harness.settings import STAGES
from harness.storage import folder
from harness.storage.files import write_json

# What imports torch is imported late: it takes seconds.

Rows = list[dict[str, Any]]

SECTIONS = ("bounds", "evaluation", "auto_lirpa", "verifier", "steps")
"""In this order: the first two may refuse their input."""
_BOUNDS = [stage for stage in STAGES if stage != names.BAB]
_SIZES = {
    "cpu": {"width": 0.25, "batch_size": 64, "rounds": 5},
    "cuda": {"width": 1.0, "batch_size": 256, "rounds": 20},
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    sizes = ", ".join(f"{size['width']} x {size['batch_size']} on a {device}" for device, size in _SIZES.items())
    parser.add_argument("models", nargs="*", default=["cnn7", "cerdeq"], help="names of networks (docs/networks.md)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections; default: all")
    parser.add_argument(
        "--dataset", default="cifar10", choices=list(DATASETS), help="data set of the section steps; default: cifar10"
    )
    parser.add_argument("--width", type=float, help=f"factor of channels; width and batch by default: {sizes}")
    parser.add_argument("--batch-size", type=int, help="batch size of the section steps")
    parser.add_argument("--rounds", type=int, help="repetitions of each step; the table shows medians")
    add_patterns(parser, "--kinds", "section steps: only kinds (such as 'ibp compiled') whose name")
    trained = "networks for the sections bounds and evaluation: results/<sweep>/networks/<key>"
    parser.add_argument("--trained", nargs="+", type=Path, default=[], metavar="NETWORK_DIR", help=trained)
    parser.add_argument("--bounds", nargs="+", choices=_BOUNDS, default=_BOUNDS, help="default: all")
    parser.add_argument(
        "--images", type=int, default=20, help="number of images, or of networks of the section verifier; default: 20"
    )
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    add_plugins(parser)
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Print a table for each section; returns the exit status. Raises InputError."""
    import torch

    from harness.bench.auto_lirpa import is_installed, measure_auto_lirpa
    from harness.bench.bounds import measure_bounds, measure_evaluation
    from harness.bench.steps import KINDS, PLAIN, measure_steps
    from harness.bench.verifier import measure_verifier
    from harness.machine.device import best_device, has_bf16
    from harness.machine.environment import describe_environment, device_name
    from harness.training.compilation import compiler_problem

    for model in options.models:
        require("models", model, model in network_names(), f"of {', '.join(network_names())}")
    plugins.trust(options.plugin, list(map(folder.sweep_dir_of, options.trained)))
    kinds = {kind: [kind] for kind in KINDS}
    options.kinds = select_by_pattern("--kinds", [PLAIN, *options.kinds] if options.kinds else ["*"], kinds)
    possible = {"bounds": options.trained, "evaluation": options.trained, "auto_lirpa": is_installed()}
    sections = [name for name in options.only if possible.get(name, True)]
    device, console = best_device(), new_console()
    for name, value in _SIZES[device.type].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    size = f"{options.dataset}, width {options.width:g}, batch {options.batch_size}"
    threads = torch.get_num_threads()
    console.print(f"{device_name(device)}, {threads} threads, torch {torch.__version__}; steps: {size}")
    compiles = "steps" in sections and any(KINDS[kind].compiled for kind in options.kinds)
    if compiles and (problem := compiler_problem(device.type)) is not None:
        console.print(f"no compiled steps: {problem}")
        options.kinds = [kind for kind in options.kinds if not KINDS[kind].compiled]
    in_bf16 = [kind for kind in options.kinds if KINDS[kind].precision == "bf16"]
    if "steps" in sections and in_bf16 and not has_bf16(device):
        console.print(f"no steps in bf16: this {device.type} has no instructions for it")
        options.kinds = [kind for kind in options.kinds if kind not in in_bf16]
    if "steps" in sections and not is_installed() and any(KINDS[kind].by_auto_lirpa for kind in options.kinds):
        console.print("no steps by auto_LiRPA, since it cannot be imported")
        options.kinds = [kind for kind in options.kinds if not KINDS[kind].by_auto_lirpa]
    measure = {
        "bounds": measure_bounds,
        "evaluation": measure_evaluation,
        "auto_lirpa": measure_auto_lirpa,
        "verifier": measure_verifier,
        "steps": measure_steps,
    }
    measured = {name: measure[name](options, device) for name in sections}
    for name, rows in measured.items():
        console.print(f"\n{name}", style="bold")
        print_table(console, list(rows[0]), ([_format_cell(value) for value in row.values()] for row in rows))
    if options.json is not None:
        settings = json.loads(json.dumps(vars(options), default=str))  # paths as text
        write_json(options.json, {"machine": describe_environment(device), "options": settings} | measured)
    return OK


def _format_cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    raise SystemExit(command_line.main("benchmark"))
