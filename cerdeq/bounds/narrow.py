"""Float32 first: a float64 network's program in float32, and boxes between the two precisions.

Sound bounds hold in any precision for the numbers that are given. So what float32 proves of a network whose weights are
float32, over a box that contains the float64 one, needs no float64.
"""

import copy
import itertools
import platform
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cerdeq.bounds.forward import with_boxes
from cerdeq.bounds.graph import Program, Step, trace
from cerdeq.bounds.interval import Interval
from cerdeq.boxes import narrowed, outward_ends


def in_float32(model: nn.Module, linear: bool = False) -> Program | None:
    """The program of a float64 model in float32, as `trace` makes it; None where that would be another function.

    It is one where a number that the program uses is no float32, or is computed from others on the way, by the model or
    while it is traced. None as well on a CPU that is no x86-64: torch may choose Winograd there, in float32.
    """
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    on_cpu = first is None or first.device.type == "cpu"
    if on_cpu and platform.machine() not in ("x86_64", "AMD64"):
        return None
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        return None
    wide, narrow = trace(model, linear), trace(copy.deepcopy(model).float(), linear)
    return narrow if _same_numbers(wide.steps, narrow.steps) else None


def _same_numbers(wide: tuple[Step, ...], narrow: tuple[Step, ...]) -> bool:
    """Return whether steps use the very same numbers in both precisions, and compute none of their own."""
    if len(wide) != len(narrow) or any(step.record is None and (step.args or step.kwargs) for step in wide):
        return False
    pairs = [pair for steps in zip(wide, narrow, strict=True) for pair in itertools.zip_longest(*map(_numbers, steps))]
    alike = [
        a is not None
        and b is not None
        and a.dtype in (torch.float64, torch.float32)
        and b.dtype == torch.float32
        and a.shape == b.shape
        for a, b in pairs
    ]
    if not all(alike):
        return False
    equal = [(a.double() == b.double()).all() for a, b in pairs]  # read at once: each reading makes a GPU's host wait
    return not equal or bool(torch.stack([each.to(equal[0].device) for each in equal]).all())


def _numbers(step: Step) -> list[Tensor]:
    """The floating-point tensors that a step uses: its module's, those among its arguments, or the one that it is."""
    values: list[Any] = [*_leaves(step.args), *_leaves(step.kwargs.values())]
    if isinstance(step.target, nn.Module):
        values += [*step.target.parameters(), *step.target.buffers()]
    elif step.record is None and not step.args and not step.kwargs:
        values.append(step.target())
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def _leaves(values: Iterable[Any]) -> list[Any]:
    return [leaf for value in values for leaf in (_leaves(value) if isinstance(value, list | tuple) else [value])]


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
    return with_boxes(program, values, lambda box: box.to(torch.float32))
