"""Projected gradient descent (Madry et al. 2018): `last_point` attacks in training, `worst_point` in judging."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from cerdeq.bounds.host import is_read
from cerdeq.equilibrium import keep
from harness.attacks.objectives import Objective, margins, objectives, ranked
from harness.config.settings import EvaluationSettings
from harness.subnormals import without_subnormals

_AT_ONCE = {"cpu": 32}  # examples, by device: more of them leave a CPU's cache and take longer
_NOISE = 1e-2  # of the span of an example's logits: ten times what `follow` leaves open, float32 far less


def ascend(
    objective: Callable[[Tensor], Tensor], point: Tensor, size: float | Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """One signed gradient step of `size` up the objective, a function of points [B, ...] to [B].

    The point that it leads to, within [low, high], and the objective [B] where it began.
    """
    point = point.detach().requires_grad_(True)
    value = objective(point)
    (gradient,) = torch.autograd.grad(value.sum(), point)
    return _moved(point.detach(), gradient, size, low, high), value.detach()


def last_point(
    objective: Callable[[Tensor], Tensor], point: Tensor, size: float | Tensor, steps: int, low: Tensor, high: Tensor
) -> Tensor:
    """Where so many steps of one size lead to."""
    for _ in range(steps):
        point, _ = ascend(objective, point, size, low, high)
    return point


def _moved(point: Tensor, gradient: Tensor, size: float | Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(point + size * gradient.sign(), low), high)


@without_subnormals()
def worst_point(
    model: nn.Module, x: Tensor, labels: Tensor, eps: Fraction, settings: EvaluationSettings, seed: int, indices: Tensor
) -> Tensor:
    """The point of least margin found within `eps` of each x [B, C, H, W] (pixels in [0, 1]), x itself included.

    Each restart climbs each of the objectives of `settings.attack` from a start of its own, by steps that begin with
    `settings.attack_step` eps and fall linearly to nothing. An example whose margin is below 0 by more than rounding is
    broken and searched no further. Starts are drawn from the seed and the example's index in its split, [B], alone:
    neither batches nor what was done before change them.
    """
    at_once = _AT_ONCE.get(x.device.type, len(x))
    logits = torch.cat([_logits(model, part) for part in x.split(at_once)])
    worst, least, others = x.clone(), margins(logits, labels), ranked(logits, labels)
    unbroken = ~_broken(logits, least)
    for restart in range(settings.attack_restarts):
        for number, objective in enumerate(objectives(settings.attack, logits.shape[1])):
            searched = unbroken.nonzero()[:, 0]
            if not len(searched):
                return worst
            for rows in searched.split(at_once):
                start = noise((seed, restart, number), indices[rows], x.shape[1:]).to(x, non_blocking=True)
                found = _climb(model, objective, x[rows], labels[rows], others[rows], eps, settings, start)
                point, margin, broken = found
                worse = margin < least[rows]
                worst[rows] = torch.where(_alike(worse, point), point, worst[rows])
                least[rows] = torch.where(worse, margin, least[rows])
                unbroken[rows] = ~broken
    return worst


def noise(seeds: tuple[int, ...], indices: Tensor, shape: torch.Size) -> Tensor:
    """Uniform numbers in [0, 1), float32 [B, ...], a function of the seeds and each index [B] by itself."""
    drawn = [np.random.default_rng([*seeds, index]).random(tuple(shape), np.float32) for index in indices.tolist()]
    return torch.from_numpy(np.stack(drawn))


def _climb(
    model: nn.Module, objective: Objective, x: Tensor, labels: Tensor, others: Tensor, eps: Fraction,
    settings: EvaluationSettings, start: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The points of least margin on a climb from `start` (in units of the box), their margins, and which are broken.

    An example that is broken is searched no further. It leaves when the host reads next, so that the rest is a smaller
    batch.
    """
    radius, steps = float(eps), settings.attack_steps
    low, high = (x - radius).clamp(min=0), (x + radius).clamp(max=1)
    point = low + start * (high - low)
    worst, least = x.clone(), torch.full_like(labels, torch.inf, dtype=x.dtype)
    gone = torch.zeros_like(labels, dtype=torch.bool)
    rows = torch.arange(len(x), device=x.device)
    keep(model, None)
    for step in range(steps + 1):
        point.requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            logits = model(point)
            height = objective(logits, labels, others).sum()
        reached, margin = point.detach(), margins(logits.detach(), labels)
        worse = (margin < least[rows]) & ~gone[rows]
        worst[rows] = torch.where(_alike(worse, reached), reached, worst[rows])
        least[rows] = torch.where(worse, margin, least[rows])
        gone[rows] = broken = gone[rows] | _broken(logits.detach(), margin)
        if step == steps:
            break
        stay = (~broken).nonzero()[:, 0] if is_read(step, x.device) else rows
        if not len(stay):
            break
        (gradient,) = torch.autograd.grad(height, point)
        point = _moved(reached, gradient, settings.attack_step * radius * (1 - step / steps), low, high)
        if len(stay) < len(rows):
            rows, point, low, high, labels, others = (part[stay] for part in (rows, point, low, high, labels, others))
            keep(model, stay)
    return worst, least, gone


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    keep(model, None)
    return model(x)


def _broken(logits: Tensor, margin: Tensor) -> Tensor:
    """Where the margin [B] is so far below 0 that the exact network's will be."""
    return margin < -_NOISE * (logits.amax(1) - logits.amin(1))


def _alike(mask: Tensor, points: Tensor) -> Tensor:
    """A mask [B] that broadcasts over points [B, ...]."""
    return mask.view(-1, *[1] * (points.dim() - 1))
