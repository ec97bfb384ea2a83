"""Ascent on the free slopes of relaxations (alpha-CROWN; Xu et al. 2021).

Any slope between the two extremes is sound, so the search runs without outward rounding; its result is proved after.
"""

from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.backward import linear_lower_bound
from cerdeq.bounds.forward import with_boxes
from cerdeq.bounds.graph import Program
from cerdeq.bounds.host import is_host_reading
from cerdeq.operators.backward import Backward
from cerdeq.precision import uncounted_rounding

ITERATIONS = 30
_RATE, _DECAY = 0.25, 0.93
_MOMENTS = 0.9, 0.999


def optimise_slopes(program: Program, values: list[Any], spec: Tensor, target: float | None) -> dict[str, Tensor]:
    """Return the slopes [B, K, *shape] with each row's best bound, for each relaxation of the program by step name.

    values: of a forward pass; spec: [B, K, N] of the output. Each row has slopes of its own. With a `target`, rows
    above it are not improved, and an example leaves when all of its rows are above it. Adam with a falling rate.
    """
    start = Backward(sound=False, choices={})
    lower = linear_lower_bound(program, values, spec, program.output, start)
    if not start.choices:
        return {}
    shape = spec.shape[:2]
    best = {name: slope.expand(*shape, *slope.shape[2:]).clone() for name, slope in start.choices.items()}
    active = torch.arange(len(spec), device=spec.device)
    slopes = {name: slope.clone() for name, slope in best.items()}
    moments = {name: (torch.zeros_like(slope), torch.zeros_like(slope)) for name, slope in best.items()}
    for iteration in range(ITERATIONS):
        undecided = torch.ones_like(active, dtype=torch.bool)
        if target is not None:
            undecided = ~(lower[active] > target).all(1)
            if is_host_reading(iteration, active.device) and len(stay := undecided.nonzero()[:, 0]) < len(active):
                active, undecided = active[stay], undecided[stay]
                slopes = {name: slope[stay] for name, slope in slopes.items()}
                moments = {name: (m[stay], v[stay]) for name, (m, v) in moments.items()}
        if not len(active):
            break
        lower_now, gradients = _evaluate(program, examples_of(program, values, active), spec[active], target, slopes)
        better = (lower_now > lower[active]) & undecided[:, None]
        lower[active] = torch.where(better, lower_now, lower[active])
        for name, slope in slopes.items():
            before = best[name][active]
            best[name][active] = torch.where(better.view(*better.shape, *[1] * (slope.dim() - 2)), slope, before)
            adam_step(slope, gradients[name], moments[name], iteration, 1.0, slope.new_ones(()))
    return best


def _evaluate(
    program: Program, values: list[Any], spec: Tensor, target: float | None, slopes: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the bounds [B, K] at these slopes and their gradients, 0 for rows above the target."""
    leaves = {name: slope.detach().requires_grad_() for name, slope in slopes.items()}
    with torch.enable_grad(), uncounted_rounding():
        lower = linear_lower_bound(program, values, spec, program.output, Backward(sound=False, slopes=leaves))
        objective = lower if target is None else lower.clamp(max=target)
        gradients = torch.autograd.grad(objective.sum(), list(leaves.values()))
    return lower.detach(), dict(zip(leaves, gradients, strict=True))


@torch.no_grad()
def adam_step(
    choices: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], iteration: int, rate: float | Tensor,
    largest: Tensor,
) -> None:  # fmt: skip
    """Take one step of Adam upwards, in place, within 0 and `largest`.

    iteration: counted from 0; the step falls with it. rate: a factor of the usual one.
    """
    first, second = moments
    first.lerp_(gradient, 1 - _MOMENTS[0])
    second.lerp_(gradient.square(), 1 - _MOMENTS[1])
    mean = first / (1 - _MOMENTS[0] ** (iteration + 1))
    spread = (second / (1 - _MOMENTS[1] ** (iteration + 1))).sqrt()
    choices.add_(rate * _RATE * _DECAY**iteration * mean / (spread + 1e-12)).clamp_(min=0)
    choices.copy_(torch.minimum(choices, largest))


def examples_of(program: Program, values: list[Any], examples: Tensor) -> list[Any]:
    """Return the values of some examples."""
    return with_boxes(program, values, lambda box, number: box.of(examples))
