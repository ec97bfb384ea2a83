"""Float32 first: a float64 network's program in float32, and boxes between the two precisions.

Sound bounds hold in any precision for the stored numbers. So float64 need not prove again what float32 proves of a
network whose weights are float32, over a box that contains the float64 one.
"""

import copy
import itertools
import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cerdeq.bounds.query import with_boxes
from cerdeq.boxes import outward_ends, smaller_box
from cerdeq.errors import UnsupportedOperator
from cerdeq.operators.interval import Interval
from cerdeq.tracing.precisions import differing_step
from cerdeq.tracing.program import Program, Step
from cerdeq.tracing.trace import trace

_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}  # compute capabilities: half of float32's rate; others, 1/64


def has_fast_float64(device: torch.device) -> bool:
    """Return whether linear bounds in float64 take at most twice as long: on CPUs, and on GPUs for data centres."""
    if device.type != "cuda":
        return device.type == "cpu"
    return torch.cuda.get_device_capability(device) in _FAST_FLOAT64


def in_float32(model: nn.Module, linear: bool = False) -> Program | None:
    """Return the program of a float64 model in float32, as `trace` makes it; None if it would be another function.

    It would be if a number of the program is no float32, or is computed from others by the model or by the tracing.
    None also on CPUs other than x86-64: in float32 torch may choose Winograd there.
    """
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    on_cpu = first is None or first.device.type == "cpu"
    if on_cpu and platform.machine() not in ("x86_64", "AMD64"):
        return None
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        return None
    float64 = trace(model, linear)
    try:
        float32 = trace(copy.deepcopy(model).float(), linear)
    except UnsupportedOperator:  # such as a divisor that is 0 there
        return None
    return float32 if _are_alike(float64, float32) else None


def _are_alike(float64: Program, float32: Program) -> bool:
    """Return whether programs are the same, with the very same numbers, and compute none of their own."""

    def equal(step: Step, a: Tensor, b: Tensor) -> bool | Tensor:
        kinds = ((torch.float64, torch.float32), (torch.float32,)) if a.is_floating_point() else ((a.dtype,),) * 2
        if a.dtype not in kinds[0] or b.dtype not in kinds[1] or a.shape != b.shape:
            return False
        return (a.double() == b.double()).all()

    if any(step.record is None and (step.args or step.kwargs) for step in float64.steps):
        return False
    return differing_step(float64, float32, equal) is None


def float32_box_around(x: Interval) -> Interval:
    """Return a float32 box that contains the float64 one."""
    limits, center = torch.finfo(torch.float32), x.center.float()
    radius = x.radius + (center.double() - x.center).abs()
    return Interval(center, (radius * (1 + 2 * limits.eps) + limits.tiny).float())


def cut_by_float32(program: Program, values: list[Any], others: list[Any]) -> list[Any]:
    """Return a float64 pass: the boxes of `values` cut by those of `others`, a float32 pass over the same inputs."""

    def cut(value: Interval, number: int) -> Interval:
        box = smaller_box(value.box, *outward_ends(others[number].box.double()))
        return Interval(box.center, box.radius)

    return with_boxes(program, values, cut)


def cast_to_float32(program: Program, values: list[Any]) -> list[Any]:
    """Return the values of a pass in float32, rounded to nearest: for searches with that program, not for proofs."""
    return with_boxes(program, values, lambda box, number: box.to(torch.float32))
