"""What is watched while a network trains: its bounds on training images, and what its equilibria do."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from baselines import DATASETS
from cerdeq import LinfBall, margin_spec
from cerdeq.bounds import Context, Interval, output_of, trace, values_of
from cerdeq.equilibrium import FixedPoint, contraction, verified_box
from harness.config.trial import TrialConfig
from harness.storage import names
from harness.training.batch_norm import recompute_statistics


@torch.no_grad()
def monitored(config: TrialConfig, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """IBP widths at the sweep's eps on images (uint8 [N, C, H, W]), and equilibria's proved bounds and shortfalls."""
    x = images.float() / 255
    ball = LinfBall(x, config.eps)
    ctx = Context(sound=False)
    spec = margin_spec(labels, DATASETS[config.dataset].classes)
    model.eval()
    program = trace(model)
    values = values_of(program, Interval(ball.center, ball.radius, x), ctx)
    margins = output_of(program, values, ctx, spec)
    width = 2 * float(margins.radius.mean())
    row = {
        names.BOUND_WIDTH: width,
        names.BOUND_WIDTH_RELATIVE: width / max(float(margins.clean_value().std()), 1e-30),
        **{names.layer_width(name): 2 * float(box.radius.mean()) for name, box in ctx.preactivations.items()},
        **parametrised(model),
    }
    equilibria = [
        _proved(step.target, values[step.sources[0]], value)
        for step, value in zip(program.steps, values[1:], strict=True)
        if isinstance(step.target, FixedPoint)
    ]
    if equilibria:
        rates, missed = zip(*equilibria, strict=True)
        row |= {names.RHO_BOUND: max(rates), names.MISSED_RADIUS: max(missed)}
    model.train()
    return {names.in_training(name): value for name, value in row.items()}


def monitored_untrained(config: TrialConfig, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """`monitored`, with the statistics of these very images in batch norm: running ones say nothing before training."""
    twin = copy.deepcopy(model)
    recompute_statistics(twin, images, len(images))
    return monitored(config, twin, images, labels)


def parametrised(model: nn.Module) -> dict[str, float]:
    """The largest gain and the least margin of the network's equilibria, before they are folded; else empty."""
    parts = [
        part
        for module in model.modules()
        if isinstance(module, FixedPoint) and parametrize.is_parametrized(module)
        for part in module.parametrizations.weight  # type: ignore[union-attr]
    ]
    if not parts:
        return {}
    gain = max(part.gain.item() for part in parts)
    return {names.GAIN: gain, names.MARGIN: min(part.margin.item() for part in parts)}


def _proved(module: FixedPoint, h: Interval, solved: Interval) -> tuple[float, float]:
    """The bound on rho(|W|), and the share, in percent, of the proved box's mean radius that the solve leaves out."""
    weight = module.weight
    proof = contraction(weight)
    whole = verified_box(weight, h.box, proof).radius.mean()
    return proof.rate, 100 * float(1 - solved.radius.mean() / whole.clamp(min=1e-30))
