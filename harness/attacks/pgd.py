"""Projected gradient descent (Madry et al. 2018): `last_point` attacks in training, `worst_point` in judging."""

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor, nn

_AT_ONCE = {"cpu": 32}  # examples, by device: more of them leave a CPU's cache and take longer


def ascend(
    objective: Callable[[Tensor], Tensor], point: Tensor, size: float | Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """One signed gradient step of `size` up the objective, a function of points [B, ...] to [B].

    The point that it leads to, within [low, high], and the objective [B] where it began.
    """
    point = point.detach().requires_grad_(True)
    value = objective(point)
    (gradient,) = torch.autograd.grad(value.sum(), point)
    point = point.detach() + size * gradient.sign()
    return torch.minimum(torch.maximum(point, low), high), value.detach()


def last_point(
    objective: Callable[[Tensor], Tensor], point: Tensor, size: float | Tensor, steps: int, low: Tensor, high: Tensor
) -> Tensor:
    """Where so many steps of one size lead to."""
    for _ in range(steps):
        point, _ = ascend(objective, point, size, low, high)
    return point


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The true class's logit minus the largest other one: [B]."""
    true = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return true - others.amax(1)


def worst_point(
    model: nn.Module, x: Tensor, labels: Tensor, eps: Fraction, steps: int, restarts: int, generator: torch.Generator
) -> Tensor:
    """The point of least margin found within `eps` of each x [B, C, H, W] (pixels in [0, 1]).

    Steps from random starts, of size eps / 4 falling linearly to nothing; the worst point of all steps and restarts is
    kept, x itself included.
    """
    noises = [torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device) for _ in range(restarts)]
    size = _AT_ONCE.get(x.device.type, len(x))
    parts = zip(*(values.split(size) for values in (x, labels, *noises)), strict=True)
    return torch.cat([_worst_point(model, float(eps), steps, *part) for part in parts])


def _worst_point(model: nn.Module, radius: float, steps: int, x: Tensor, labels: Tensor, *noises: Tensor) -> Tensor:
    """`worst_point` from these starts, in units of the box that is searched."""
    low, high = (x - radius).clamp(min=0), (x + radius).clamp(max=1)

    def negative_margin(points: Tensor) -> Tensor:
        return -margins(model(points), labels)

    worst = x.clone()
    with torch.no_grad():
        value_of_worst = negative_margin(worst)
    for noise in noises:
        point = low + noise * (high - low)
        for step in range(steps + 1):
            following, value = ascend(negative_margin, point, radius / 4 * (1 - step / steps), low, high)
            worse = value > value_of_worst
            worst = torch.where(worse.view(-1, *[1] * (x.dim() - 1)), point, worst)
            value_of_worst = torch.where(worse, value, value_of_worst)
            point = following
    return worst
