"""Training methods: each is one loss. A sweep names them by `method:`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cerdeq import margin_spec
from cerdeq.bounds import Context, Interval, Program, propagate
from cerdeq.boxes import Box, clipped_ball


@dataclass(frozen=True)
class Losses:
    """What a method computes of one batch.

    robust: scalar, the method's loss. lower, clean: [B, K - 1], lower bounds and clean values of the margins.
    input_radius: [B, C, H, W], the radius of the input box in pixel units. preactivations: the box before each ReLU.
    """

    robust: Tensor
    lower: Tensor
    clean: Tensor
    input_radius: Tensor
    preactivations: list[Box]


def ibp(program: Program, x: Tensor, labels: Tensor, classes: int, eps: Tensor) -> Losses:
    """Cross entropy of (0, -lower margins), margins bounded by IBP (Gowal et al. 2018; Shi et al. 2021)."""
    ball = clipped_ball(x, eps)
    ctx = Context(sound=False)
    margins = propagate(program, Interval(ball.center, ball.radius, x), ctx, margin_spec(labels, classes))
    lower = margins.box.lower
    logits = torch.cat([torch.zeros_like(lower[:, :1]), -lower], dim=1)
    robust = F.cross_entropy(logits, torch.zeros_like(labels))
    return Losses(robust, lower, margins.clean_value(), ball.radius, list(ctx.preactivations.values()))


METHODS: dict[str, Callable[[Program, Tensor, Tensor, int, Tensor], Losses]] = {"ibp": ibp}
