"""Projected gradient descent (Madry et al. 2018): `last_point` attacks in training, `worst_point` in evaluation."""

import itertools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from cerdeq.deadline import check
from cerdeq.equilibrium import restrict_solutions
from cerdeq.gpu_readings import is_host_reading
from harness.attacks.objectives import Objective, margins, objectives, rank_classes
from harness.machine.subnormals import without_subnormals
from harness.settings import EvaluationSettings

_PIXELS_AT_ONCE = 2**15  # of 32 CIFAR images: more of them leave a CPU's cache and take longer
_ROUNDING = 1e-2  # of the span of an example's logits: ten times the error of `follow`; float32's is far smaller


def last_point(
    objective: Callable[[Tensor], Tensor], point: Tensor, size: float | Tensor, steps: int, low: Tensor, high: Tensor
) -> Tensor:
    """Return the point after signed gradient steps of one size up the objective, each within [low, high].

    objective: a function of points [B, ...] to [B].
    """
    for _ in range(steps):
        point = point.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(point).sum(), point)
        point = _step(point.detach(), gradient, size, low, high)
    return point


def _step(point: Tensor, gradient: Tensor, size: float | Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(point + size * gradient.sign(), low), high)


@without_subnormals()
def worst_point(
    model: nn.Module, x: Tensor, labels: Tensor, eps: Fraction, settings: EvaluationSettings, seed: int, indices: Tensor
) -> Tensor:
    """Search within `eps` of each x [B, C, H, W] (pixels in [0, 1]) and return the points of smallest margin.

    x itself is included. Each restart ascends each objective of `settings.attack` from a start of its own. Steps begin
    with `settings.attack_step` eps and fall linearly to 0. The search stops for an example whose margin is below 0 by
    more than rounding. Starts depend on the seed and on the example's index in its split ([B]) alone, so batches and
    earlier calls do not change them.
    """
    at_once = max(1, _PIXELS_AT_ONCE // x[0, 0].numel()) if x.device.type == "cpu" else len(x)
    logits = torch.cat([_logits(model, part) for part in x.split(at_once)])
    worst, smallest, others = x.clone(), margins(logits, labels), rank_classes(logits, labels)
    correct = ~_falsified(logits, smallest)
    functions = objectives(settings.attack, logits.shape[1])
    ascents = list(itertools.product(range(settings.attack_restarts), range(len(functions))))
    done = 0
    while done < len(ascents) and len(targets := correct.nonzero()[:, 0]):
        # Few examples ascend several times at once, but never more often than they have before: some of it is in vain.
        group = ascents[done : done + max(1, min(done, at_once // len(targets)))]
        done += len(group)
        for rows in targets.split(at_once):
            starts = [random_starts((seed, *ascent), indices[rows], x.shape[1:]) for ascent in group]
            each = rows.repeat(len(group))
            climb = [functions[number] for _, number in group], x[each], labels[each], others[each]
            results = _ascend_many(model, *climb, eps, settings, torch.cat(starts).to(x, non_blocking=True))
            for points, margin, falsified in zip(*(part.split(len(rows)) for part in results), strict=True):
                _replace_worse(worst, smallest, rows, points, margin, correct[rows] & (margin < smallest[rows]))
                correct[rows] &= ~falsified
    return worst


def random_starts(seeds: tuple[int, ...], indices: Tensor, shape: torch.Size) -> Tensor:
    """Return uniform numbers in [0, 1), float32 [B, ...]; each example's depend on the seeds and its index alone."""
    numbers = [np.random.default_rng([*seeds, index]).random(tuple(shape), np.float32) for index in indices.tolist()]
    return torch.from_numpy(np.stack(numbers))


def _ascend_many(
    model: nn.Module, functions: list[Objective], x: Tensor, labels: Tensor, others: Tensor, eps: Fraction,
    settings: EvaluationSettings, start: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Ascend from `start` (in units of the box) by all steps of one restart, equally many examples by each function.

    A falsified example leaves the batch when the host next reads from the device.

    Returns:
        The points of smallest margin, their margins, and which examples are falsified.
    """
    radius, steps = float(eps), settings.attack_steps
    low, high = (x - radius).clamp(min=0), (x + radius).clamp(max=1)
    point = low + start * (high - low)
    worst, smallest = x.clone(), torch.full_like(labels, torch.inf, dtype=x.dtype)
    falsified = torch.zeros_like(labels, dtype=torch.bool)
    rows = torch.arange(len(x), device=x.device)
    choice = (rows // (len(x) // len(functions)))[None]
    restrict_solutions(model, None)
    for step in range(steps + 1):
        check()
        point.requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            logits = model(point)
            heights = torch.stack([function(logits, labels, others) for function in functions])
            height = heights.gather(0, choice).sum()
        current, margin = point.detach(), margins(logits.detach(), labels)
        worse = (margin < smallest[rows]) & ~falsified[rows]
        _replace_worse(worst, smallest, rows, current, margin, worse)
        falsified[rows] = done = falsified[rows] | _falsified(logits.detach(), margin)
        if step == steps:
            break
        stay = (~done).nonzero()[:, 0] if is_host_reading(step, x.device) else rows
        if not len(stay):
            break
        (gradient,) = torch.autograd.grad(height, point)
        point = _step(current, gradient, settings.attack_step * radius * (1 - step / steps), low, high)
        if len(stay) < len(rows):
            rows, point, low, high, labels, others = (part[stay] for part in (rows, point, low, high, labels, others))
            choice = choice[:, stay]
            restrict_solutions(model, stay)
    return worst, smallest, falsified


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    restrict_solutions(model, None)
    return model(x)


def _falsified(logits: Tensor, margin: Tensor) -> Tensor:
    """Return where the margin [B] is so far below 0 that the exact network's is too."""
    return margin < -_ROUNDING * (logits.amax(1) - logits.amin(1))


def _replace_worse(
    worst: Tensor, smallest: Tensor, rows: Tensor, points: Tensor, margin: Tensor, worse: Tensor
) -> None:
    """Replace, in these rows, the worst points and smallest margins by the points and margins that are worse."""
    mask = worse.view(-1, *[1] * (points.dim() - 1))
    worst[rows] = torch.where(mask, points, worst[rows])
    smallest[rows] = torch.where(worse, margin, smallest[rows])
