"""Ascent on the free slopes of relaxations (alpha-CROWN; Xu et al. 2021).

Any slope between the two extremes is sound, so the search runs without outward rounding; its result is proved after.
"""

from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.backward import linear_lower_bound
from cerdeq.bounds.forward import with_boxes
from cerdeq.bounds.graph import Program
from cerdeq.bounds.host import is_read
from cerdeq.bounds.linear import Backward
from cerdeq.bounds.precision import uncounted_rounding

ITERATIONS = 30
_RATE, _DECAY = 0.25, 0.93
_MOMENTS = 0.9, 0.999


def optimised_slopes(program: Program, values: list[Any], spec: Tensor, target: float | None) -> dict[str, Tensor]:
    """For each relaxation of the program, by step name, the slopes [B, K, *shape] that made each row's bound best.

    values: of a forward pass; spec: [B, K, N] of the output. Each row has slopes of its own. With a `target`, rows
    above it are left alone and an example leaves when all of its rows are above it. Adam with a falling rate.
    """
    start = Backward(sound=False, chosen={})
    lower = linear_lower_bound(program, values, spec, program.output, start)
    assert start.chosen is not None
    if not start.chosen:
        return {}
    shape = spec.shape[:2]
    best = {name: share.expand(*shape, *share.shape[2:]).clone() for name, share in start.chosen.items()}
    active = torch.arange(len(spec), device=spec.device)
    slopes = {name: share.clone() for name, share in best.items()}
    moments = {name: (torch.zeros_like(share), torch.zeros_like(share)) for name, share in best.items()}
    for iteration in range(ITERATIONS):
        waiting = torch.ones_like(active, dtype=torch.bool)
        if target is not None:
            waiting = ~(lower[active] > target).all(1)
            if is_read(iteration, active.device) and len(stay := waiting.nonzero()[:, 0]) < len(active):
                active, waiting, slopes = active[stay], waiting[stay], {n: share[stay] for n, share in slopes.items()}
                moments = {name: (m[stay], v[stay]) for name, (m, v) in moments.items()}
        if not len(active):
            break
        reached, gradients = _evaluated(program, examples_of(program, values, active), spec[active], target, slopes)
        better = (reached > lower[active]) & waiting[:, None]
        lower[active] = torch.where(better, reached, lower[active])
        for name, share in slopes.items():
            kept = best[name][active]
            best[name][active] = torch.where(better.view(*better.shape, *[1] * (share.dim() - 2)), share, kept)
            adam_step(share, gradients[name], moments[name], iteration, 1.0, share.new_ones(()))
    return best


def _evaluated(
    program: Program, values: list[Any], spec: Tensor, target: float | None, slopes: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The bounds [B, K] at these slopes and their gradients; rows above the target have none."""
    leaves = {name: share.detach().requires_grad_() for name, share in slopes.items()}
    with torch.enable_grad(), uncounted_rounding():
        lower = linear_lower_bound(program, values, spec, program.output, Backward(sound=False, slopes=leaves))
        wanted = lower if target is None else lower.clamp(max=target)
        gradients = torch.autograd.grad(wanted.sum(), list(leaves.values()))
    return lower.detach(), dict(zip(leaves, gradients, strict=True))


@torch.no_grad()
def adam_step(
    choices: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], iteration: int, rate: float | Tensor,
    largest: Tensor,
) -> None:  # fmt: skip
    """One step of Adam, upwards, in place, within 0 and `largest`; iterations are counted from 0, and with each the
    step falls. rate: a factor of the usual one."""
    first, second = moments
    first.lerp_(gradient, 1 - _MOMENTS[0])
    second.lerp_(gradient.square(), 1 - _MOMENTS[1])
    mean = first / (1 - _MOMENTS[0] ** (iteration + 1))
    spread = (second / (1 - _MOMENTS[1] ** (iteration + 1))).sqrt()
    choices.add_(rate * _RATE * _DECAY**iteration * mean / (spread + 1e-12)).clamp_(min=0)
    choices.copy_(torch.minimum(choices, largest))


def examples_of(program: Program, values: list[Any], examples: Tensor) -> list[Any]:
    """The values of some examples."""
    return with_boxes(program, values, lambda box: box.of(examples))
