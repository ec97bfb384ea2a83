"""The section `steps`: training steps of every kind, beside plain training of the same network."""

import argparse
import math
from typing import Any

import torch

from harness.measure.machine import matrix_peak, median_seconds, operations, peak_memory
from harness.measure.timed_networks import Step, TimedNetworks
from harness.memory import kept_memory
from harness.training.compilation import compiler_problem

_WARM_UP = 2  # rounds that are not counted
BOUNDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ibp": ("ibp", {}),
    "crown-ibp": ("crown-ibp", {}),
    "crown-ibp unfused": ("crown-ibp", {"loss_fusion": False}),
}
"""The kinds of bounds whose steps are timed: a method and its options."""
_ATTACKING = ("sabr", "mtl-ibp", "pgd")
_PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


def measure_steps(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each kind of step of each network."""
    with kept_memory():
        peaks = {name: matrix_peak(device, dtype) for name, dtype in _PRECISIONS.items()}
        networks = TimedNetworks(options, device)
        return [row for name in options.models for row in _rows(name, networks, peaks)]


def _rows(name: str, networks: TimedNetworks, peaks: dict[str, float]) -> list[dict[str, Any]]:
    device, options = networks.device, networks.options
    kinds = _kinds(name, networks)
    median_seconds(kinds, _WARM_UP, device)
    medians = median_seconds(kinds, options.rounds, device)
    counted = {"plain": operations(networks.plain_step(name))}
    counted |= {title: operations(networks.eager_step(name, *method)) for title, method in BOUNDS.items()}
    rows = []
    for kind, seconds in medians.items():
        flops = counted.get(kind.removesuffix(" compiled").removesuffix(" eager").removesuffix(" bf16"), math.nan)
        captured = device.type == "cuda" and not kind.startswith("plain")  # torch does not count a graph's memory
        rows.append(
            {
                "network": name,
                "step": kind,
                "examples/s": options.batch_size / seconds,
                "cost over plain": seconds / medians["plain"],
                "% of matrix peak": 100 * flops / seconds / peaks["bf16" if " bf16" in kind else "float32"],
                "MiB": math.nan if captured else peak_memory(kinds[kind], device),
            }
        )
    return rows


def _kinds(name: str, networks: TimedNetworks) -> dict[str, Step]:
    """Return every kind of step of one network, plain training first."""
    compiles = compiler_problem(networks.device.type) is None
    kinds = {"plain": networks.plain_step(name), "plain bf16": networks.plain_step(name, "bf16")}
    if compiles:
        kinds["plain compiled"] = networks.plain_step(name, compiled=True)
    for title, (method, options) in BOUNDS.items():
        for precision in _PRECISIONS:
            for compiled in (False, True) if compiles else (False,):
                words = [title, *["bf16"][: precision == "bf16"], "compiled" if compiled else "eager"]
                kinds[" ".join(words)] = networks.step(name, method, options, precision, compiled)
    for method in _ATTACKING:
        kinds[f"{method} eager"] = networks.step(name, method, {})
    return kinds
