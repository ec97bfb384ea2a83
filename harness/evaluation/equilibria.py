"""What a trained network's recurrence does, so that an idle one shows."""

import copy

import torch
from torch import Tensor, nn

from cerdeq.equilibrium import FixedPoint, contraction, fold
from harness.config.trial import TrialConfig
from harness.evaluation.verdicts import errors_without_attack
from harness.storage import names


def recurrence_report(model: nn.Module, images: Tensor, labels: Tensor, config: TrialConfig) -> dict[str, float]:
    """The bound on rho(|W|), the mean iterations of the clean solve, and the errors with every W set to zero.

    Of several equilibria the largest bound and count. model: float64, in evaluation mode; empty where it has none.
    """
    points = [module for module in model.modules() if isinstance(module, FixedPoint)]
    if not points:
        return {}
    idle = copy.deepcopy(model)
    fold(idle)
    with torch.no_grad():
        for module in idle.modules():
            if isinstance(module, FixedPoint):
                module.weight.zero_()
    first = images[: config.evaluation.batch_size]
    standard, certified = errors_without_attack(idle, images, labels, config)
    return {
        names.RHO_BOUND: max(contraction(module.weight).rate for module in points),
        names.ITERATIONS: max(_mean_iterations(model, module, first) for module in points),
        names.STANDARD_ERROR_W0: standard,
        names.CERTIFIED_ERROR_W0: certified,
    }


def _mean_iterations(model: nn.Module, module: FixedPoint, images: Tensor) -> float:
    """Mean iterations of `module`'s solve while the network predicts the images."""
    counts: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda m, inputs: counts.append(m.solve(inputs[0]).iterations))
    with torch.no_grad():
        model(images.double() / 255)
    hook.remove()
    return float(counts[0].double().mean())
