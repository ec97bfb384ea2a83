"""Training methods: each is one loss. A sweep names them by `method:`, and their options by `method_options:`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cerdeq import margin_spec
from cerdeq.bounds import Backward, Context, Interval, Program, linear_lower_bound, output_of, values_of
from cerdeq.boxes import Box, clipped_ball


@dataclass(frozen=True)
class Batch:
    """x: [B, C, H, W], pixels in [0, 1]; labels: [B]; eps: the radius, a scalar; progress: eps over its target."""

    x: Tensor
    labels: Tensor
    classes: int
    eps: Tensor
    progress: Tensor


@dataclass(frozen=True)
class Losses:
    """What a method computes of one batch.

    robust: scalar, the method's loss. lower, clean: [B, K - 1], IBP lower bounds and clean values of the margins.
    input_radius: [B, C, H, W], the radius of the input box in pixel units. preactivations: the box before each ReLU, by
    the name of its step.
    """

    robust: Tensor
    lower: Tensor
    clean: Tensor
    input_radius: Tensor
    preactivations: dict[str, Box]


def ibp(program: Program, batch: Batch) -> Losses:
    """Cross entropy of (0, -lower margins), margins bounded by IBP (Gowal et al. 2018; Shi et al. 2021)."""
    forward = _forward(program, batch)
    return forward.losses(_cross_entropy(forward.margins.box.lower))


def crown_ibp(program: Program, batch: Batch, *, loss_fusion: bool = True, final_beta: float = 0.0) -> Losses:
    """beta CROWN-IBP + (1 - beta) IBP, beta falling from 1 to `final_beta` as eps grows (Zhang et al. 2020).

    loss_fusion: bound the sum in the cross entropy as one function instead of each margin, with one backward pass in
    place of K - 1 (Xu et al. 2020); beta then mixes the bounds of that sum, and wide margins leave little of CROWN in
    it, since exp is bounded by its chord.
    """
    forward = _forward(program, batch)
    beta = 1 - (1 - final_beta) * batch.progress
    if loss_fusion:
        return forward.losses(_fused_cross_entropy(forward, beta))
    lower = beta * forward.crown(forward.spec) + (1 - beta) * forward.margins.box.lower
    return forward.losses(_cross_entropy(lower))


@dataclass(frozen=True)
class _Forward:
    """A differentiable forward pass of clean values and boxes, and the margins at its end."""

    program: Program
    values: list[Any]
    ctx: Context
    spec: Tensor
    margins: Interval

    def crown(self, spec: Tensor) -> Tensor:
        """CROWN-IBP lower bounds [B, K] of spec [B, K, N]."""
        pass_back = Backward(sound=False, kept=self.ctx.kept)
        return linear_lower_bound(self.program, self.values, spec, self.program.output, pass_back)

    def losses(self, robust: Tensor) -> Losses:
        lower, clean, boxes = self.margins.box.lower, self.margins.clean_value(), self.ctx.preactivations
        return Losses(robust, lower, clean, self.values[0].radius, boxes)


def _forward(program: Program, batch: Batch) -> _Forward:
    ball = clipped_ball(batch.x, batch.eps)
    ctx = Context(sound=False)
    values = values_of(program, Interval(ball.center, ball.radius, batch.x), ctx)
    spec = margin_spec(batch.labels, batch.classes).to(batch.x)
    return _Forward(program, values, ctx, spec, output_of(program, values, ctx, spec))


def _cross_entropy(lower: Tensor) -> Tensor:
    """Cross entropy of the logits (0, -lower), the first one's class being right."""
    logits = torch.cat([torch.zeros_like(lower[:, :1]), -lower], dim=1)
    return F.cross_entropy(logits, torch.zeros_like(lower[:, 0], dtype=torch.long))


def _fused_cross_entropy(forward: _Forward, beta: Tensor) -> Tensor:
    """log(1 + S), S an upper bound of the sum of exp(-margin) over the other classes.

    exp lies below its chord over each margin's IBP interval, so that S = sum of exp(-lower) - (c . margins - c . lower)
    will do, c >= 0 the chords' slopes, and c . margins is one functional for CROWN. All is over the largest exp.
    """
    lower, width = forward.margins.box.lower, 2 * forward.margins.radius
    shift = torch.relu(-lower).amax(1, keepdim=True).detach()
    largest = torch.exp(-lower - shift)
    slopes = largest * torch.where(width > 1e-4, -torch.expm1(-width) / width.clamp(min=1e-4), 1 - width / 2)
    gained = forward.crown(slopes.unsqueeze(1) @ forward.spec).squeeze(1) - (slopes * lower).sum(1)
    total = (largest.sum(1) - beta * gained).clamp(min=1e-12)
    return (shift.squeeze(1) + torch.log(torch.exp(-shift.squeeze(1)) + total)).mean()


@dataclass(frozen=True)
class Method:
    """A loss, and whether it needs the operators' backward rules."""

    loss: Callable[..., Losses]
    linear: bool


METHODS = {"ibp": Method(ibp, linear=False), "crown-ibp": Method(crown_ibp, linear=True)}


def method_options(method: str) -> dict[str, inspect.Parameter]:
    """The options a method takes, by name, with their types and defaults."""
    parameters = inspect.signature(METHODS[method].loss).parameters
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_options(method: str, options: dict[str, Any]) -> None:
    """Raise TypeError for an option that the method does not have, ValueError for one out of range."""
    known = method_options(method)
    for name in options:
        if name not in known:
            raise TypeError(f"{method} has no option {name!r}; it has: {', '.join(known) or 'none'}")
    if not 0 <= options.get("final_beta", 0.0) <= 1:
        raise ValueError(f"final_beta must lie in [0, 1], found {options['final_beta']}")


def method_at(method: str, options: dict[str, Any], progress: float) -> str:
    """The method whose loss equals that of `method` when eps is `progress` of its target: CROWN-IBP whose beta has
    fallen to 0 is IBP, which costs less."""
    spent = method == "crown-ibp" and progress >= 1 and not options.get("final_beta", 0.0)
    return "ibp" if spent else method
