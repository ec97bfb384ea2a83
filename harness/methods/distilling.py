"""Distillation from a robust teacher: CC-Dist and AD-CERT, as we read the abstracts of 2026; no code is public."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq.bounds import Context, Program, Step, points_of, trace
from cerdeq.equilibrium import FixedPoint, set_progress
from harness.common.errors import require
from harness.common.method_names import register
from harness.methods.expressive import Expressive
from harness.methods.passes import Batch, Losses, bound_box, cross_entropy


@dataclass(frozen=True)
class Distilling(Expressive):
    """An expressive loss with a teacher; the attack also returns the teacher's output at the adversarial images."""

    teacher: dict[str, Any] | None = None
    """The network to learn from: keys as in an entry of `trials`; `{}` is the student's network, trained by pgd. It has
    the sweep's recipe, and the student's width, radius, seed and held-out images. It is trained once for all rows that
    name the same. Required."""

    def check(self, program: Program, teacher: Program | None) -> None:
        """Raise ValueError without a teacher."""
        require("teacher", None, teacher is not None, "a mapping: {} is the same network, trained by pgd")

    def attack(self, program: Program, batch: Batch) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return adversarial images of the student, and the teacher's output there."""
        images = super().attack(program, batch)
        assert batch.teacher is not None
        with torch.no_grad():
            return images, self.teacher_output(batch.teacher, images)

    def teacher_output(self, teacher: Program, images: Tensor) -> Tensor:
        """Return what the student is to learn from at images: the teacher's logits [B, K]."""
        return points_of(teacher, images, Context(sound=False, follow=False))


@register
@dataclass(frozen=True)
class ADCERT(Distilling):
    """(1 - alpha) KL divergence from the teacher's probabilities at adversarial images + alpha IBP's cross entropy.

    Our reading of the abstract of AD-CERT (arXiv 2606.31653).
    """

    name: ClassVar[str] = "ad-cert"

    def loss(self, program: Program, batch: Batch) -> Losses:
        """Return the loss that the class describes."""
        images, teacher_logits = batch.pair
        logits, ball = self.both(program, replace(batch, adversary=images))
        log_probs, teacher_log_probs = logits.log_softmax(1), teacher_logits.log_softmax(1)
        distance = F.kl_div(log_probs, teacher_log_probs, reduction="batchmean", log_target=True)
        return ball.losses((1 - self.alpha) * distance + self.alpha * cross_entropy(ball.margins.box.lower))


@register
@dataclass(frozen=True)
class CCDist(Distilling):
    """CC-IBP's loss + `distillation` times the mean of d squared.

    d, for each feature: (1 - alpha) |student - teacher| at adversarial images + alpha times the largest |student -
    teacher| in IBP's box. Features: the inputs of the last linear layer; both networks need the same number. Our
    reading of the abstract of CC-Dist (De Palma 2026, arXiv 2602.02626).
    """

    name: ClassVar[str] = "cc-dist"

    distillation: float = 1.0
    """Weight of the distance to the teacher's features; 0 is CC-IBP. The default is ours."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("distillation", self.distillation, self.distillation >= 0, "at least 0")

    def ignored(self) -> dict[str, str]:
        """Return nothing: the attack is used with alpha 1, too."""
        return {}

    def check(self, program: Program, teacher: Program | None) -> None:
        """Raise ValueError unless both networks end in linear layers of as many inputs."""
        super().check(program, teacher)
        assert teacher is not None
        count, teacher_count = (_last_layer(each).target.in_features for each in (program, teacher))
        allowed = f"{count} features before its last layer, as many as the network has"
        require("teacher", teacher_count, count == teacher_count, allowed)

    def teacher_output(self, teacher: Program, images: Tensor) -> Tensor:
        """Return the teacher's features."""
        return features_of(teacher, images, Context(sound=False, follow=False))

    def loss(self, program: Program, batch: Batch) -> Losses:
        """Return the loss that the class describes."""
        images, teacher_features = batch.pair
        ball = bound_box(program, batch, batch.x, batch.eps)
        features = features_of(program, images, ball.ctx)
        number = features_number(program)
        margins = batch.margins_of(points_of(program, features, ball.ctx, number))
        margins = (1 - self.alpha) * margins + self.alpha * ball.margins.box.lower
        box = ball.values[number]
        largest = (box.center - teacher_features).abs() + box.radius
        distance = (1 - self.alpha) * (features - teacher_features).abs() + self.alpha * largest
        return ball.losses(cross_entropy(margins) + self.distillation * distance.square().mean())


def features_number(program: Program) -> int:
    """Return the number of the value that the last layer takes. Raises ValueError unless that layer is linear."""
    return _last_layer(program).sources[0]


def _last_layer(program: Program) -> Step:
    last = program.steps[program.output - 1]
    if not isinstance(last.target, nn.Linear):
        raise ValueError(f"cc-dist needs networks that end in a linear layer; found {last.where}")
    return last


def features_of(program: Program, images: Tensor, ctx: Context) -> Tensor:
    """Return a network's features [B, N] at images [B, C, H, W], by the statistics and weights that `ctx` has."""
    number = features_number(program)
    return points_of(Program(program.steps[:number], number), images, ctx)


def make_teacher(model: nn.Module) -> Program:
    """Return a trained network as a teacher: frozen, with the running statistics of its batch norm.

    Its equilibria are iterated as often as at the end of training: a fixed number of times, as CUDA graphs need.
    """
    model.requires_grad_(False).eval()
    set_progress(model, 1.0)
    for module in model.modules():
        if isinstance(module, FixedPoint):
            module.train()
    return trace(model)
