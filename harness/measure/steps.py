"""Training steps of every kind timed in turn, and of one size after the other."""

import argparse
import math
from collections.abc import Callable
from typing import Any

from harness.measure import peer
from harness.measure.bench import Bench
from harness.measure.machine import operations, peak_memory
from harness.measure.timing import medians
from harness.training.compilation import compiler_problem

WARM_UP = 2
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ibp": ("ibp", {}),
    "crown-ibp": ("crown-ibp", {}),
    "crown-ibp unfused": ("crown-ibp", {"loss_fusion": False}),
}
"""The kinds of bounds whose steps are timed: a method and its options."""

_ATTACKING = ("sabr", "mtl-ibp", "pgd")

Steps = dict[str, Callable[[], object]]


def steps(options: argparse.Namespace, bench: Bench, peaks: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each kind of step of each network, `peaks` the machine's by precision."""
    rows = []
    for model in options.models:
        kinds = _kinds(bench, model, options.against)
        medians(kinds, WARM_UP, bench.device)
        seconds = medians(kinds, options.rounds, bench.device)
        flops = _flops(bench, model)
        for kind, median in seconds.items():
            performed = flops.get(kind.removesuffix(" compiled").removesuffix(" eager").removesuffix(" bf16"), math.nan)
            peak = peaks["bf16" if " bf16" in kind else "float32"]
            rows.append(
                {
                    "network": model,
                    "step": kind,
                    "examples/s": options.batch_size / median,
                    "cost over plain": median / seconds["plain"],
                    "% of matrix peak": 100 * performed / median / peak,
                    "MiB": math.nan if _captured(kind, bench) else peak_memory(kinds[kind], bench.device),
                }
            )
    return rows


def _kinds(bench: Bench, name: str, against: str | None) -> Steps:
    """Every kind of step of one network, plain training first."""
    compiles = compiler_problem(bench.device.type) is None
    kinds: Steps = {"plain": bench.plain(name), "plain bf16": bench.plain(name, "bf16")}
    if compiles:
        kinds["plain compiled"] = bench.plain(name, compiled=True)
    for title, (method, options) in METHODS.items():
        for precision in ("float32", "bf16"):
            for compiled in (False, True) if compiles else (False,):
                words = [title, *["bf16"][: precision == "bf16"], "compiled" if compiled else "eager"]
                kinds[" ".join(words)] = bench.step(name, method, options, precision, compiled)
    for method in _ATTACKING:
        kinds[f"{method} eager"] = bench.step(name, method, {})
    if against is not None:
        kinds |= {f"{title} {against}": step for title, step in peer.steps_of(bench, name, METHODS).items()}
    return kinds


def _captured(kind: str, bench: Bench) -> bool:
    """Whether a step of this kind is a CUDA graph, whose memory nobody counts."""
    return bench.device.type == "cuda" and not kind.startswith("plain") and not kind.endswith(peer.NAME)


def _flops(bench: Bench, name: str) -> dict[str, int]:
    """Operations of plain and of bounding steps, counted on eager ones."""
    counted = {"plain": operations(bench.plain(name))}
    return counted | {title: operations(bench.uncaptured(name, *method)) for title, method in METHODS.items()}


def scaling(options: argparse.Namespace, bench: Bench, peaks: dict[str, float]) -> list[dict[str, Any]]:
    """Eager IBP steps of one size after the other, beside plain ones of the same size."""
    rows = []
    for what, sizes in _SCALES.items():
        for size in sizes:
            other, name, network_options = _scaled(options, what, size)
            bench = Bench(other, bench.device)
            kinds: Steps = {"plain": bench.plain(name, **network_options)}
            kinds["ibp"] = bench.step(name, "ibp", {}, **network_options)
            medians(kinds, WARM_UP, bench.device)
            seconds = medians(kinds, options.rounds, bench.device)
            rows.append(
                {
                    "scale": what,
                    "network": name,
                    "size": size,
                    "plain examples/s": other.batch_size / seconds["plain"],
                    "ibp examples/s": other.batch_size / seconds["ibp"],
                    "cost over plain": seconds["ibp"] / seconds["plain"],
                }
            )
    return rows


_SCALES = {"depth": (5, 7, 9, 11), "width": (0.5, 1, 2), "batch": (0.5, 1, 2), "iterations": (5, 10, 20)}
"""Layers; factors of the width and of the batch size asked for; steps of the solver, there and back."""


def _scaled(options: argparse.Namespace, what: str, size: float) -> tuple[argparse.Namespace, str, dict[str, Any]]:
    """The options of this size, the network and its own options."""
    other = argparse.Namespace(**vars(options))
    if what == "depth":
        return other, "cnn", {"depth": size}
    if what == "iterations":
        return other, "cerdeq", {"iterations": size, "backward_iterations": size}
    if what == "width":
        other.width = options.width * size
    else:
        other.batch_size = int(options.batch_size * size)
    return other, "cnn7", {}
