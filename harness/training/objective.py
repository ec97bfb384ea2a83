"""The objective of a training step: a method's loss, the regularisers, and the attack before it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cerdeq.bounds import Program, trace
from cerdeq.boxes import Box
from cerdeq.equilibrium import FixedPoint
from harness.config.training import Training
from harness.methods import Adversary, Batch, Losses, Method, cross_entropies, cross_entropy
from harness.training.compilation import compiled_loss

Attack = Callable[[Tensor, Tensor, Tensor], Adversary | None]
Loss = Callable[[Tensor, Tensor, Tensor, Adversary | None], tuple[Tensor, Tensor]]
_TAU = 0.5


def make_objective(
    config: Training, method: Method, model: nn.Sequential, compiled: bool, teacher: Program | None = None
) -> tuple[Attack, Loss]:
    """Return the attack (x, labels, eps) -> adversary, and the loss (x, labels, eps, adversary) -> loss, report [3].

    teacher: of a distilling method.
    """
    attack_loss = compiled_loss(cross_entropies) if compiled else cross_entropies
    settings, info, target = config.train, config.data_info, float(config.train_eps)
    program = trace(model, linear=method.linear)
    std = model.get_submodule("normalize").get_buffer("std")
    regularised = [
        step.name for step in program.steps if settings.regularise_equilibria or not isinstance(step.target, FixedPoint)
    ]

    def in_precision(x: Tensor) -> torch.autocast:
        # Uncached: the cache would return casts that an equilibrium's solve made without gradients.
        return torch.autocast(x.device.type, torch.bfloat16, enabled=settings.precision == "bf16", cache_enabled=False)

    def attack(x: Tensor, labels: Tensor, eps: Tensor) -> Adversary | None:
        with in_precision(x), _frozen(model):
            batch = Batch(x, labels, info.classes, eps, eps / target, attack_loss=attack_loss, teacher=teacher)
            return method.attack(program, batch)

    def regulariser(losses: Losses) -> Tensor:
        boxes = [losses.preactivations[name] for name in regularised if name in losses.preactivations]
        return tightness(losses.input_radius / std, boxes) + balance(boxes)

    def loss_and_report(
        x: Tensor, labels: Tensor, eps: Tensor, adversary: Adversary | None = None
    ) -> tuple[Tensor, Tensor]:
        progress = eps / target
        with in_precision(x):
            losses = method.loss(program, Batch(x, labels, info.classes, eps, progress, adversary))
        loss = losses.robust
        if settings.kappa or settings.kappa_start:
            start = settings.kappa if settings.kappa_start is None else settings.kappa_start
            kappa = start + (settings.kappa - start) * progress
            loss = (1 - kappa) * loss + kappa * cross_entropy(losses.clean)
        if losses.preactivations:
            loss = loss + settings.regularisation * (1 - progress) * regulariser(losses)
        if settings.l1:
            loss = loss + settings.l1 * sum(p.abs().sum() for p in model.parameters() if p.dim() > 1)
        clean = (losses.clean > 0).all(1).sum().to(loss)
        certified = clean * torch.nan if losses.lower is None else (losses.lower > 0).all(1).sum().to(loss)
        return loss, torch.stack([loss.detach(), clean, certified])

    return attack, compiled_loss(loss_and_report) if compiled else loss_and_report


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Switch off the gradients of weights in the block, since compiled attacks would compute them for nothing."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


# The regularisers of Shi et al. 2021, section 4.3, over the boxes before each ReLU.


def tightness(input_radius: Tensor, preactivations: list[Box]) -> Tensor:
    """Return the mean over i of relu(tau - D0 / Di) / tau.

    Di: the mean radius before ReLU i. D0: the mean radius of the normalised input, above 0. The term is 0 where Di is
    below D0, and Di itself is 0 behind a layer that is inactive for all images.
    """
    first = input_radius.mean()
    ratios = [first / torch.maximum(box.radius.mean(), first) for box in preactivations]
    return torch.stack([torch.relu(_TAU - ratio) / _TAU for ratio in ratios]).mean()


def balance(preactivations: list[Box]) -> Tensor:
    """Return the mean over i of [relu(tau - q(a)) + relu(tau - q(b))] / tau, q(t) = min(t, 1 / t).

    a: the mean of active centres over minus that of inactive ones; b: the same of their squared deviations from the
    mean centre. A layer whose ratio is not finite, since both sides are empty, adds 0.
    """
    return torch.stack([_imbalance(box) for box in preactivations]).mean()


def _imbalance(box: Box) -> Tensor:
    mean = box.center.mean()
    count, total, squares = _Sums.apply(box.center, box.radius).T
    active, inactive = total
    spread_active, spread_inactive = (squares - 2 * mean * total + count * mean.square()).clamp(min=0)
    mean_ratio, mean_defined = _ratio(active, -inactive)
    spread_ratio, spread_defined = _ratio(spread_active, spread_inactive)
    term = (torch.relu(_TAU - mean_ratio) + torch.relu(_TAU - spread_ratio)) / _TAU
    return torch.where(mean_defined & spread_defined, term, torch.zeros_like(term))


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
        center, radius = (tensor.movedim(1, -1) for tensor in ctx.saved_tensors)  # see `_ReLUBox` in cerdeq
        active, inactive = (
            mask * (of_total + 2 * of_squares * center)
            for mask, (_, of_total, of_squares) in zip(_stable(center, radius), gradient, strict=True)
        )
        return (active + inactive).movedim(-1, 1), None


def _stable(center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 for units that are always active, else 0; and 1 for those never active. As in `relu_box_slopes`."""
    return torch.relu(torch.sign(center - radius)), torch.relu(torch.sign(-center - radius))


def _ratio(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return min(a / b, b / a) of numbers of at least 0, and where it is defined."""
    larger = torch.maximum(a, b)
    return torch.minimum(a, b) / larger.clamp(min=1e-30), larger > 0
