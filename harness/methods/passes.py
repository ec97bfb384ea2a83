"""The batch that a training method gets, the losses it returns, and the passes that methods share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cerdeq.bounds import (
    Backward,
    Context,
    Interval,
    Program,
    linear_lower_bound,
    output_of,
    points_of,
    unchecked_margin_spec,
    values_of,
)
from cerdeq.boxes import Box, clipped_ball


def cross_entropies(program: Program, points: Tensor, labels: Tensor, ctx: Context) -> Tensor:
    """Return the cross entropy [B] at points [B, C, H, W], with the batch statistics in `ctx`: the loss of attacks."""
    return F.cross_entropy(points_of(program, points, ctx), labels, reduction="none")


Adversary = Tensor | tuple[Tensor, Tensor]
"""Adversarial images; or two tensors: the centre of a box and positions in a latent box, as `harness.methods.taps` has
them, or adversarial images and the teacher's output there (`harness.methods.distilling`)."""


@dataclass(frozen=True)
class Batch:
    """A batch of training images.

    x: [B, C, H, W], pixels in [0, 1].
    labels: [B].
    eps, progress: the radius, a scalar, and its share of the target.
    adversary: what the method's attack found, images [B, C, H, W] in most methods; None if it has none.
    attack_loss: `cross_entropies`, compiled if losses are.
    teacher: of attacks, the network that a distilling method learns from; None in other methods.
    """

    x: Tensor
    labels: Tensor
    classes: int
    eps: Tensor
    progress: Tensor
    adversary: Adversary | None = None
    attack_loss: Callable[[Program, Tensor, Tensor, Context], Tensor] = cross_entropies
    teacher: Program | None = None

    @property
    def spec(self) -> Tensor:
        """The spec of the labels' margins, [B, K - 1, K]."""
        return unchecked_margin_spec(self.labels, self.classes).to(self.x)

    def margins_of(self, logits: Tensor) -> Tensor:
        """Return the labels' margins [B, K - 1] of logits [B, K]."""
        return (self.spec * logits[:, None]).sum(2)  # no product that autocast would round

    @property
    def adversarial(self) -> Tensor:
        """The adversarial examples, for methods whose attack returns images."""
        assert isinstance(self.adversary, Tensor)
        return self.adversary

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """The two tensors of `adversary`, for methods whose attack returns two."""
        assert isinstance(self.adversary, tuple)
        return self.adversary


@dataclass(frozen=True)
class Losses:
    """The losses of one batch.

    robust: scalar, the method's loss.
    clean: [B, K - 1], clean values of the margins.
    lower: [B, K - 1], their lower bounds over the whole ball, or None if the method has none.
    input_radius: [B, C, H, W], the radius of the bounded box, in pixel units; 0 if the method computes no bounds.
    preactivations: the box before each ReLU, by the name of its step.
    """

    robust: Tensor
    clean: Tensor
    lower: Tensor | None
    input_radius: Tensor
    preactivations: dict[str, Box]


@dataclass(frozen=True)
class BoundedBox:
    """A differentiable forward pass of clean values and of boxes around `center`, and the margins at its end."""

    program: Program
    values: list[Any]
    ctx: Context
    spec: Tensor
    margins: Interval

    def crown(self, spec: Tensor) -> Tensor:
        """Return CROWN-IBP lower bounds [B, K] of spec [B, K, N]."""
        pass_back = Backward(sound=False, saved=self.ctx.saved)
        return linear_lower_bound(self.program, self.values, spec, self.program.output, pass_back)

    def losses(self, robust: Tensor, certifies: bool = True) -> Losses:
        """Return the losses with `robust`. certifies: True if the box is the whole ball."""
        lower = self.margins.box.lower if certifies else None
        return Losses(robust, self.margins.clean_value(), lower, self.values[0].radius, self.ctx.preactivations)


def bound_box(
    program: Program, batch: Batch, center: Tensor, radius: Tensor, relu_shrinkage: float = 1.0, follow: bool = True
) -> BoundedBox:
    """Bound boxes of `radius` (a scalar) around `center` [B, C, H, W], clipped to [0, 1], and compute clean values.

    follow: whether batch norm moves its running statistics: once a step.
    """
    box = clipped_ball(center, radius)
    ctx = Context(sound=False, follow=follow, relu_shrinkage=relu_shrinkage)
    values = values_of(program, Interval(box.center, box.radius, batch.x), ctx)
    spec = batch.spec
    return BoundedBox(program, values, ctx, spec, output_of(program, values, ctx, spec))


def losses_without_bounds(robust: Tensor, logits: Tensor, batch: Batch) -> Losses:
    """Return the losses of a method that computes no bounds. logits: [B, K], of the clean images."""
    return Losses(robust, batch.margins_of(logits), None, torch.zeros_like(batch.x), {})


def cross_entropy(margins: Tensor) -> Tensor:
    """Return the mean cross entropy of the logits (0, -margins [B, K - 1]), where the first class is the label."""
    logits = torch.cat([torch.zeros_like(margins[:, :1]), -margins], dim=1)
    return F.cross_entropy(logits, torch.zeros_like(margins[:, 0], dtype=torch.long))
