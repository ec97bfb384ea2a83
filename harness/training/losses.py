"""Training methods: each is one loss. A sweep names them by `method:`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq import margin_spec
from cerdeq.bounds import Context, Interval, Program, propagate
from cerdeq.boxes import Box, clipped_ball


@dataclass(frozen=True)
class Losses:
    """What a method computes of one batch.

    robust: scalar, the method's loss. lower: [B, K - 1] lower bounds of the margins. clean: [B, K - 1] clean margins.
    input_radius: the normalised input box's radius. preactivations: the box before each ReLU.
    """

    robust: Tensor
    lower: Tensor
    clean: Tensor
    input_radius: Tensor
    preactivations: list[Box]


def ibp(model: nn.Sequential, program: Program, x: Tensor, labels: Tensor, eps: Tensor) -> Losses:
    """Cross entropy of (0, -lower margins), margins bounded by IBP (Gowal et al. 2018; Shi et al. 2021)."""
    ball = clipped_ball(x, eps)
    ctx = Context(sound=False)
    classes = model.classifier.out_features
    margins = propagate(program, Interval(ball.center, ball.radius, x), ctx, margin_spec(labels, classes))
    lower = margins.center - margins.radius
    logits = torch.cat([torch.zeros_like(lower[:, :1]), -lower], dim=1)
    robust = F.cross_entropy(logits, torch.zeros_like(labels))
    input_radius = ball.radius / model.normalize.std
    return Losses(robust, lower, margins.clean, input_radius, list(ctx.preactivations.values()))


METHODS: dict[str, Callable[[nn.Sequential, Program, Tensor, Tensor, Tensor], Losses]] = {"ibp": ibp}
