"""The network before training, and initialisation for certified training (Shi et al. 2021, section 4.1)."""

import math

import torch
from torch import nn

from baselines import build
from baselines.layers import Normalize
from cerdeq.bounds import Program, Reference, Step, trace
from cerdeq.equilibrium import FixedPoint
from harness.config.training import Training

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)


def untrained_network(config: Training) -> nn.Sequential:
    """Return the network that training starts from, on the CPU; weights are drawn from the trial's seed."""
    torch.manual_seed(config.seed)
    model = build(config.model, config.data_info, config.width, **config.options)
    data = config.data_info
    model.normalize = Normalize(config.train.mean or data.mean, config.train.std or data.std)
    if config.train.initialisation == "ibp":
        initialise(model)
    return model


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Draw every hidden convolution and linear weight from N(0, 2 pi / fan_in^2), in place, by torch's generator.

    With it the mean box radius neither grows nor shrinks over a layer. The classifier and all biases keep torch's
    defaults, an equilibrium's recurrent kernel its own. A layer that follows a residual addition gets half the weights;
    weights that are applied several times are drawn once, and halved where any of their uses follows one.
    """
    program = trace(model)
    weighted = [step for step in program.steps if isinstance(step.target, _WEIGHTED)]
    halved = {step.target.weight for step in weighted if _follows_addition(program, step)}
    for weight in dict.fromkeys(step.target.weight for step in weighted[:-1]):
        nn.init.normal_(weight, std=math.sqrt(2 * math.pi) / weight[0].numel())
        if weight in halved:
            weight /= 2


def _follows_addition(program: Program, step: Step) -> bool:
    source = step.args[0]
    while isinstance(source, Reference) and source.index > 0:
        before = program.steps[source.index - 1]
        if before.record is None or isinstance(before.target, (*_WEIGHTED, FixedPoint)):
            return False
        if before.record.name == "add":
            return True
        source = before.args[0]
    return False
