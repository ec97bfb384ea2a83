"""Float32 first: a float64 network's program in float32, and boxes between the two precisions.

Sound bounds hold in any precision for the numbers that are given. So what float32 proves of a network whose weights are
float32, over a box that contains the float64 one, needs no float64.
"""

import copy
import itertools
import platform
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from cerdeq.bounds.graph import Program, trace
from cerdeq.bounds.interval import Interval
from cerdeq.boxes import narrowed, outward_ends


def in_float32(model: nn.Module, linear: bool = False) -> Program | None:
    """The program of a float64 model in float32, as `trace` makes it; None where that would be another function.

    It is one where a number of the model is no float32, and where numbers are computed from others on the way. None as
    well on a CPU that is no x86-64, where torch may choose Winograd convolutions in float32.
    """
    numbers = list(_numbers(model))
    on_cpu = not numbers or numbers[0].device.type == "cpu"
    if on_cpu and platform.machine() not in ("x86_64", "AMD64"):
        return None
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        return None
    small = copy.deepcopy(model).float()
    pairs = zip(_numbers(model), _numbers(small), strict=True)
    if not all(torch.equal(wide, narrow.to(wide.dtype)) for wide, narrow in pairs):
        return None
    program = trace(small, linear)
    return program if all(step.record is not None or not step.args for step in program.steps) else None


def _numbers(model: nn.Module) -> Any:
    return itertools.chain(model.parameters(), model.buffers())


def rounded_outwards(x: Interval) -> Interval:
    """A float32 box that contains the float64 one."""
    limits, center = torch.finfo(torch.float32), x.center.float()
    radius = x.radius + (center.double() - x.center).abs()
    return Interval(center, (radius * (1 + 2 * limits.eps) + limits.tiny).float())


def within(program: Program, values: list[Any], others: list[Any]) -> list[Any]:
    """A float64 pass whose boxes are those of `values`, cut by those of `others`, a float32 pass over the same inputs.

    What is not bounded is computed again: it may know the batch's size.
    """
    cut: list[Any] = [values[0]]
    for step, value, other in zip(program.steps, values[1:], others[1:], strict=True):
        if isinstance(value, Interval):
            box = narrowed(value.box, *outward_ends(other.box.double()))
            cut.append(Interval(box.center, box.radius))
        else:
            cut.append(step.run(cut))
    return cut


def rounded(program: Program, values: list[Any]) -> list[Any]:
    """The values of a pass in float32, rounded to nearest: for searches with that program, which prove nothing."""
    near: list[Any] = []
    for number, value in enumerate(values):
        bounded = isinstance(value, Interval)
        near.append(value.to(torch.float32) if bounded else program.steps[number - 1].run(near))
    return near
