"""The two regularisers of Shi et al. 2021, section 4.3, over the boxes before each ReLU."""

import torch
from torch import Tensor

from cerdeq.boxes import Box

_TAU = 0.5


def tightness(input_radius: Tensor, preactivations: list[Box]) -> Tensor:
    """mean over i of relu(tau - D0 / Di) / tau: Di the mean radius before ReLU i, D0 that of the normalised input."""
    terms = [torch.relu(_TAU - input_radius.mean() / box.radius.mean()) / _TAU for box in preactivations]
    return torch.stack(terms).mean()


def balance(preactivations: list[Box]) -> Tensor:
    """mean over i of [relu(tau - q(a)) + relu(tau - q(b))] / tau, q(t) = min(t, 1 / t).

    a: the mean of active centres over minus that of inactive ones; b: the same of their squared deviations from the
    mean centre. Where both sides are empty the ratio is not finite and its layer is left out of the sum.
    """
    return torch.stack([_imbalance(box) for box in preactivations]).mean()


def _imbalance(box: Box) -> Tensor:
    center = box.center
    active = (box.lower > 0).to(center.dtype)
    inactive = (box.upper < 0).to(center.dtype)
    deviation = (center - center.mean()).square()
    mean_ratio, mean_defined = _ratio((center * active).mean(), -(center * inactive).mean())
    spread_ratio, spread_defined = _ratio((deviation * active).sum(), (deviation * inactive).sum())
    term = (torch.relu(_TAU - mean_ratio) + torch.relu(_TAU - spread_ratio)) / _TAU
    return torch.where(mean_defined & spread_defined, term, torch.zeros_like(term))


def _ratio(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """min(a / b, b / a) of numbers of at least 0, and whether it is defined."""
    larger = torch.maximum(a, b)
    return torch.minimum(a, b) / larger.clamp(min=1e-30), larger > 0
