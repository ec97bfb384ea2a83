"""The two regularisers of Shi et al. 2021, section 4.3, over the boxes before each ReLU."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cerdeq.boxes import Box

_TAU = 0.5


def tightness(input_radius: Tensor, preactivations: list[Box]) -> Tensor:
    """Return the mean over i of relu(tau - D0 / Di) / tau.

    Di: the mean radius before ReLU i. D0: the mean radius of the normalised input.
    """
    terms = [torch.relu(_TAU - input_radius.mean() / box.radius.mean()) / _TAU for box in preactivations]
    return torch.stack(terms).mean()


def balance(preactivations: list[Box]) -> Tensor:
    """Return the mean over i of [relu(tau - q(a)) + relu(tau - q(b))] / tau, q(t) = min(t, 1 / t).

    a: the mean of active centres over minus that of inactive ones; b: the same of their squared deviations from the
    mean centre. A layer whose ratio is not finite, since both sides are empty, adds 0.
    """
    return torch.stack([_imbalance(box) for box in preactivations]).mean()


def _imbalance(box: Box) -> Tensor:
    mean = box.center.mean()
    sums = _Sums.apply(box.center, box.radius)
    (active, inactive), (spread_active, spread_inactive) = sums[:, 1], _squared_deviations(mean, *sums.T)
    mean_ratio, mean_defined = _ratio(active, -inactive)
    spread_ratio, spread_defined = _ratio(spread_active, spread_inactive)
    term = (torch.relu(_TAU - mean_ratio) + torch.relu(_TAU - spread_ratio)) / _TAU
    return torch.where(mean_defined & spread_defined, term, torch.zeros_like(term))


def _squared_deviations(mean: Tensor, count: Tensor, total: Tensor, squares: Tensor) -> Tensor:
    """Return sums of squared deviations from `mean`, from the sums of 1, values and squares."""
    return (squares - 2 * mean * total + count * mean.square()).clamp(min=0)


class _Sums(torch.autograd.Function):
    """Sums of 1, centre and square of centre over the active units of a box, then over its inactive ones: [2, 3].

    One pass forward and one back; autograd would take thirty over tensors as large as the layer.
    """

    @staticmethod
    def forward(ctx: Any, center: Tensor, radius: Tensor) -> Tensor:
        ctx.save_for_backward(center, radius)
        sums = []
        for mask in _stable(center, radius):
            part = center * mask
            sums += [mask.sum(), part.sum(), (part * center).sum()]
        return torch.stack(sums).view(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        center, radius = ctx.saved_tensors
        active, inactive = (
            mask * (of_total + 2 * of_squares * center)
            for mask, (_, of_total, of_squares) in zip(_stable(center, radius), gradient, strict=True)
        )
        return active + inactive, None


def _stable(center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 for units that are always active, else 0; and 1 for those never active. As in `relu_box_slopes`."""
    return torch.relu(torch.sign(center - radius)), torch.relu(torch.sign(-center - radius))


def _ratio(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return min(a / b, b / a) of numbers of at least 0, and where it is defined."""
    larger = torch.maximum(a, b)
    return torch.minimum(a, b) / larger.clamp(min=1e-30), larger > 0
