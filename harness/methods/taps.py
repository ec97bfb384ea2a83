"""TAPS and STAPS (Mao et al. 2023): IBP through a feature extractor, then an attack in its box on the classifier."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cerdeq.bounds import Interval, Program, points_of
from harness.common.errors import require
from harness.common.method_names import register
from harness.methods.certified import IBP
from harness.methods.expressive import SABR
from harness.methods.method import Method
from harness.methods.passes import Batch, BoundedBox, Losses, bound_box, cross_entropy

_LARGEST_STEPS = 0.2  # of the box's width; fewer steps than 10 are longer, to cross it
_LAST_STEPS = 0.2  # what the last 30 % of ten steps or more are multiplied by


@register
@dataclass(frozen=True)
class TAPS(Method):
    """IBP's cross entropy times that of margins which an attack finds in the latent box of IBP (Mao et al. 2023).

    Each margin is attacked on its own, from the feature extractor's box on, through the classifier. While eps grows,
    IBP trains.
    """

    name: ClassVar[str] = "taps"
    _is_whole_ball: ClassVar[bool] = True

    classifier_relus: int = 1
    """Number of ReLUs in the classifier; the layers before it are the feature extractor. A residual block is never
    divided: then the classifier has more of them."""
    gradient_scale: float = 5.0
    """Factor of the gradient through the attack, where that of IBP's cross entropy has 1 (the paper's w)."""
    connector: float = 0.5
    """Part of the latent box's width in which a point moves with an end of it (the paper's c)."""
    latent_steps: int = 20
    """Number of signed gradient steps in the latent box."""
    latent_restarts: int = 1
    """Number of random starts in the latent box; the smallest margin counts."""
    relu_shrinkage: float = 1.0
    """Factor of the upper bound after each unstable ReLU (CTBench 2024: 0.8 at 2/255). Equilibria may then not
    converge."""

    def __post_init__(self) -> None:
        require("classifier_relus", self.classifier_relus, self.classifier_relus >= 0, "an integer of at least 0")
        require("gradient_scale", self.gradient_scale, self.gradient_scale > 0, "above 0")
        require("connector", self.connector, 0 < self.connector <= 1, "above 0 and at most 1")
        require("latent_steps", self.latent_steps, self.latent_steps >= 1, "an integer of at least 1")
        require("latent_restarts", self.latent_restarts, self.latent_restarts >= 1, "an integer of at least 1")
        require("relu_shrinkage", self.relu_shrinkage, 0 < self.relu_shrinkage <= 1, "above 0 and at most 1")

    def check(self, program: Program, teacher: Program | None) -> None:
        """Raise ValueError if the network has too few ReLUs."""
        classifier_start(program, self.classifier_relus)

    def at(self, progress: float) -> Method:
        """Return what trains while eps grows: IBP."""
        if progress >= 1:
            return self
        return IBP() if self.relu_shrinkage == 1 else SABR(1, subselection=1.0, relu_shrinkage=self.relu_shrinkage)

    def attack(self, program: Program, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the centre of the bounded box [B, C, H, W], and a position in the latent box for each margin.

        Positions [B, K - 1, ...] are from -1 to 1, in units of the latent radius.
        """
        center = self._center(program, batch)
        start = classifier_start(program, self.classifier_relus)
        with torch.no_grad():
            box = self._box(program, batch, center, follow=False)
        latent: Interval = box.values[start]

        def margins(positions: Tensor) -> Tensor:
            points = latent.center[:, None] + positions * latent.radius[:, None]
            return margins_at(program, start, box, points)

        like = latent.center[:, None].expand(-1, batch.classes - 1, *latent.center.shape[1:])
        return center, lowest_positions(margins, like, self.latent_steps, self.latent_restarts)

    def loss(self, program: Program, batch: Batch) -> Losses:
        """Return the loss that the class describes.

        The gradient is scaled by hand (`gradient_scale`), so it is not the derivative of the value.
        """
        center, positions = batch.pair
        start = classifier_start(program, self.classifier_relus)
        box = self._box(program, batch, center)
        points = connected_points(box.values[start], positions, self.connector)
        attacked = cross_entropy(margins_at(program, start, box, points))
        bounded = cross_entropy(box.margins.box.lower)
        change = attacked - attacked.detach()  # 0, with a gradient
        robust = attacked.detach() * bounded + self.gradient_scale * bounded.detach() * change
        return box.losses(robust, certifies=self._is_whole_ball and self.relu_shrinkage == 1)

    def _center(self, program: Program, batch: Batch) -> Tensor:
        return batch.x

    def _box(self, program: Program, batch: Batch, center: Tensor, follow: bool = True) -> BoundedBox:
        return bound_box(program, batch, center, batch.eps, self.relu_shrinkage, follow)


def classifier_start(program: Program, relus: int) -> int:
    """Return the number of the value at which a classifier of `relus` ReLUs starts: the last that separates so many.

    It is the result of a ReLU or an equilibrium, and no later step uses an earlier value. Raises ValueError if there is
    no such value.
    """
    activations = [
        number
        for number, step in enumerate(program.steps, 1)
        if step.record is not None and step.record.preactivation is not None
    ]
    for start in reversed(activations[: max(0, len(activations) - relus)]):
        if all(source >= start for step in program.steps[start:] for source in step.sources):
            return start
    raise ValueError(
        f"classifier_relus: found {relus}, allowed: so few of the network's {len(activations)} ReLUs that one before "
        "them separates the network"
    )


def margins_at(program: Program, start: int, box: BoundedBox, points: Tensor) -> Tensor:
    """Return margin k [B, K - 1] at the k-th latent point of each example, points [B, K - 1, ...]."""
    logits = points_of(program, points.flatten(0, 1), box.ctx, start).unflatten(0, points.shape[:2])
    return (box.spec * logits).sum(2)  # no product that autocast would round


def lowest_positions(margins: Callable[[Tensor], Tensor], like: Tensor, steps: int, restarts: int) -> Tensor:
    """Return the positions [B, K - 1, ...] of the lowest margins that signed gradient steps find from random starts.

    margins: a function of positions to [B, K - 1]. like: a tensor of the positions' shape.
    """
    lowest, best = torch.full_like(like.flatten(2)[..., 0], torch.inf), torch.zeros_like(like)
    for _ in range(restarts):
        point = 2 * torch.rand_like(like) - 1
        for step in range(steps + 1):
            point = point.detach().requires_grad_(True)
            values = margins(point)
            (gradient,) = torch.autograd.grad(values.sum(), point)
            lower = values.detach() < lowest
            lowest = torch.where(lower, values.detach(), lowest)
            best = torch.where(lower.view(*lower.shape, *[1] * (like.dim() - 2)), point.detach(), best)
            size = 2 * max(_LARGEST_STEPS, 2 / steps) * (_LAST_STEPS if steps >= 10 and step >= int(0.7 * steps) else 1)
            point = (point.detach() - size * gradient.sign()).clamp(-1, 1)
    return best


def connected_points(latent: Interval, positions: Tensor, connector: float) -> Tensor:
    """Return the points [B, K - 1, ...] at these positions of a latent box, with the gradient connector's gradients.

    The gradient of a point with respect to an end of the box falls linearly from 1 at this end to 0 at the part
    `connector` of the width away. With connector 1 it is the derivative.
    """
    center, radius = latent.center[:, None], latent.radius[:, None]
    from_lower, from_upper = (1 + positions) / 2, (1 - positions) / 2
    lower, upper = center - radius, center + radius
    point = (center + positions * radius).detach()
    point = point + torch.relu(1 - from_lower / connector) * (lower - lower.detach())
    return point + torch.relu(1 - from_upper / connector) * (upper - upper.detach())


@register
@dataclass(frozen=True)
class STAPS(TAPS, SABR):  # type: ignore[misc]  # its attack returns a pair
    """TAPS over the small box of SABR (Mao et al. 2023). While eps grows, SABR trains.

    The box is not the whole ball, so training rows have no certified error.
    """

    name: ClassVar[str] = "staps"
    _is_whole_ball: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        SABR.__post_init__(self)

    def at(self, progress: float) -> Method:
        """Return what trains while eps grows: SABR."""
        sabr = SABR(self.attack_steps, self.attack_step, self.subselection, self.relu_shrinkage)
        return self if progress >= 1 else sabr

    def _center(self, program: Program, batch: Batch) -> Tensor:
        return SABR.attack(self, program, batch)

    def _box(self, program: Program, batch: Batch, center: Tensor, follow: bool = True) -> BoundedBox:
        return bound_box(program, batch, center, self.subselection * batch.eps, self.relu_shrinkage, follow)
