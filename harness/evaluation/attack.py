"""Projected gradient descent (Madry et al. 2018), with restarts, on the margin."""

from fractions import Fraction

import torch
from torch import Tensor, nn


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The true class's logit minus the largest other one: [B]."""
    true = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return true - others.amax(1)


def attack(
    model: nn.Module, x: Tensor, labels: Tensor, eps: Fraction, steps: int, restarts: int, generator: torch.Generator
) -> Tensor:
    """The point of least margin found within `eps` of each x [B, C, H, W] (pixels in [0, 1]).

    Signed gradient steps from random starts, of size eps / 4 falling linearly to nothing; the worst point of all steps
    and restarts is kept, x itself included.
    """
    radius = float(eps)
    low, high = (x - radius).clamp(min=0), (x + radius).clamp(max=1)
    worst = x.clone()
    with torch.no_grad():
        worst_margin = margins(model(x), labels)
    for _ in range(restarts):
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        point = low + noise * (high - low)
        for step in range(steps + 1):
            point = point.detach().requires_grad_(True)
            margin = margins(model(point), labels)
            (gradient,) = torch.autograd.grad(margin.sum(), point)
            better = margin.detach() < worst_margin
            worst = torch.where(better.view(-1, *[1] * (x.dim() - 1)), point.detach(), worst)
            worst_margin = torch.where(better, margin.detach(), worst_margin)
            size = radius / 4 * (1 - step / steps)
            point = torch.minimum(torch.maximum(point.detach() - size * gradient.sign(), low), high)
    return worst
