"""Monitoring of a network in training: its bounds on training images, and its equilibria; batch norm's statistics."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cerdeq import LinfBall, margin_spec
from cerdeq.bounds import Context, Interval, output_of, trace, values_of
from cerdeq.equilibrium import FixedPoint, contraction
from cerdeq.equilibrium.certificate import interval_equilibrium
from cerdeq.equilibrium.weights import Parametrisation
from harness.common import names
from harness.config.training import Training


@torch.no_grad()
def monitor_bounds(config: Training, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Return IBP widths at the radius of training on images (uint8 [N, C, H, W]), and metrics of the equilibria."""
    x = images.float() / 255
    ball = LinfBall(x, config.train_eps)
    ctx = Context(sound=False)
    spec = margin_spec(labels, config.data_info.classes)
    model.eval()
    program = trace(model)
    values = values_of(program, Interval(ball.center, ball.radius, x), ctx)
    margins = output_of(program, values, ctx, spec)
    width = 2 * float(margins.radius.mean())
    row = {
        names.BOUND_WIDTH: width,
        names.BOUND_WIDTH_RELATIVE: width / max(float(margins.clean_value().std()), 1e-30),
        **{names.layer_width(name): 2 * float(box.radius.mean()) for name, box in ctx.preactivations.items()},
        **parametrisation_metrics(model),
    }
    equilibria = [
        _recurrence_metrics(step.target, values[step.sources[0]], value)
        for step, value in zip(program.steps, values[1:], strict=True)
        if isinstance(step.target, FixedPoint) and not step.target.is_split
    ]
    if equilibria:
        rates, missed = zip(*equilibria, strict=True)
        row |= {names.RHO_BOUND: max(rates), names.MISSED_RADIUS: max(missed)}
    model.train()
    return {names.in_training(name): value for name, value in row.items()}


def monitor_untrained(config: Training, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Return `monitor_bounds` with these images' statistics in batch norm, which has none before training."""
    network = copy.deepcopy(model)
    recompute_statistics(network, images, len(images))
    return monitor_bounds(config, network, images, labels)


def parametrisation_metrics(model: nn.Module) -> dict[str, float]:
    """Return the largest gain and the smallest margin of equilibria, empty if there are none or they are folded."""
    parts = [
        part
        for module in model.modules()
        if isinstance(module, FixedPoint) and parametrize.is_parametrized(module)
        for part in module.parametrizations.weight  # type: ignore[union-attr]
        if isinstance(part, Parametrisation)
    ]
    if not parts:
        return {}
    gain = max(part.gain.max().item() for part in parts)
    return {names.GAIN: gain, names.MARGIN: min(part.margin.item() for part in parts)}


def _recurrence_metrics(module: FixedPoint, h: Interval, solution: Interval) -> tuple[float, float]:
    """Return the bound on rho(|W|), and the percentage of the mean radius at the fixed point that the solve misses.

    The radius is the converged interval equilibrium's. To prove a box of it would take several times as long.
    """
    converged_radius = interval_equilibrium(module.weight, h.box).radius.mean()
    missed = 1 - solution.radius.mean() / converged_radius.clamp(min=1e-30)
    return contraction(module.weight).rate, 100 * float(missed)


@torch.no_grad()
def recompute_statistics(model: nn.Module, images: Tensor, batch_size: int) -> None:
    """Set batch norm's statistics to the means over whole batches of images (uint8 [N, C, H, W]).

    The rest of the model is put into evaluation mode, so that no equilibrium's W changes.
    """
    norms = [module for module in model.eval().modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().reset_running_stats()
        norm.momentum = None  # the mean over batches
    for part in images.split(batch_size):
        if len(part) == batch_size:
            model(part.float() / 255)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
