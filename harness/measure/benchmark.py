"""`python -m harness.benchmark`: what training, judging and the harness itself cost, in one run on this machine.

steps: training steps of every kind against plain training of the same network: torch's own forward pass, cross entropy
and Adam. An IBP step carries three values (clean, centre, radius) through every layer, so three times its cost is what
arithmetic alone would ask. With --against auto_LiRPA, its steps beside ours. scaling: an eager IBP step against depth,
width, batch and solver iterations. evaluation: each stage of the verifier, and the attack. overhead: trivial trials by
harness.run, with Ray and MLflow, against the same trials one after the other in a bare loop, and its driver's memory.
Steps of all kinds are taken in turn, so that a machine whose speed drifts slows them alike; figures are medians.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from baselines import DATASETS, network_names, required_options
from harness.command_line import OK
from harness.device import best_device
from harness.environment import describe_environment, device_title
from harness.errors import require
from harness.measure import peer
from harness.measure.bench import Bench
from harness.measure.machine import matrix_peak
from harness.measure.overhead import overhead
from harness.measure.stages import evaluation
from harness.measure.steps import scaling, steps
from harness.memory import kept_memory
from harness.storage.files import write_json
from harness.training.compilation import compiler_problem

Rows = list[dict[str, Any]]

SECTIONS: dict[str, Callable[[argparse.Namespace, Bench, dict[str, float]], Rows]] = {
    "steps": steps, "scaling": scaling, "evaluation": evaluation, "overhead": overhead,
}  # fmt: skip
"""What is measured: (options, bench, the machine's matrix peaks) -> rows."""

_SIZES = {
    "cpu": {"width": 0.25, "batch_size": 64, "rounds": 5},
    "cuda": {"width": 1.0, "batch_size": 256, "rounds": 20},
}


_WIDTH = 120  # of tables that are not written to a terminal


def _models() -> list[str]:
    """Return the networks that a name alone describes."""
    return [name for name in network_names() if not required_options(name)]


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    sizes = ", ".join(f"{size['width']} x {size['batch_size']} on a {device}" for device, size in _SIZES.items())
    parser.add_argument("models", nargs="*", default=["cnn7", "cerdeq"], help=f"of {', '.join(_models())}")
    parser.add_argument("--dataset", default="cifar10", choices=list(DATASETS))
    parser.add_argument("--width", type=float, help=f"factor of channels; width and batch by default: {sizes}")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int, help="of steps that medians are taken of")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    parser.add_argument("--trials", type=int, default=8, help="of the section overhead; default: 8")
    parser.add_argument("--against", choices=[peer.NAME], help="set its steps beside ours")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")


def main(options: argparse.Namespace) -> int:
    """Print a table a section. Raises InputError where the peer cannot be imported."""
    peer.require_peer(options.against)
    for model in options.models:
        require("models", model, model in _models(), f"of {', '.join(_models())}")
    device, console = best_device(), Console()
    if not console.is_terminal:
        console.width = _WIDTH
    for name, value in _SIZES[device.type].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if (problem := compiler_problem(device.type)) is not None:
        console.print(f"no compiled steps, since compiling does not work here: {problem}", markup=False)
    with kept_memory():
        peaks = {name: matrix_peak(device, dtype) for name, dtype in _PRECISIONS.items()}
        size = f"{options.dataset}, width {options.width:g}, batch {options.batch_size}"
        shown = ", ".join(f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items())
        console.print(f"{device_title(device)}, torch {torch.__version__}, {size}; matrix products: {shown}")
        bench = Bench(options, device)
        measured = {name: SECTIONS[name](options, bench, peaks) for name in options.only}
    for name, rows in measured.items():
        console.print(_table(name, rows))
    if options.json is not None:
        asked = {name: value for name, value in vars(options).items() if name != "json"}
        machine = {**describe_environment(device), "matrix_peak": peaks}
        write_json(options.json, {"machine": machine, "options": asked} | _without_nan(measured))
    return OK


_PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


def _table(title: str, rows: Rows) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        table.add_column(name, justify="left" if isinstance(rows[0].get(name), str) else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    return table


def _without_nan(measured: dict[str, Rows]) -> dict[str, Rows]:
    return {
        name: [{key: None if value != value else value for key, value in row.items()} for row in rows]
        for name, rows in measured.items()
    }


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str) or value == int(value):
        return str(value) if isinstance(value, str) else str(int(value))
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
