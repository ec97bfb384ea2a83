"""What a trained network's recurrence does, so that an idle one shows."""

import copy
from contextlib import suppress

import torch
from torch import Tensor, nn

from cerdeq.equilibrium import FixedPoint, NotConvergedError, Solution, contraction
from harness.config.trial import TrialConfig
from harness.evaluation.verdicts import errors_without_attack
from harness.storage import names

_COUNTED = 100  # images whose iterations are counted: float64 solves to ten digits, which take longer than bounds


def recurrence_report(model: nn.Module, images: Tensor, labels: Tensor, config: TrialConfig) -> dict[str, float]:
    """The bound on rho(|W|), what some clean solves end with, and the errors with every W set to zero.

    Of several equilibria the largest of each. model: float64, in evaluation mode; empty where it has none.
    """
    points = [module for module in model.modules() if isinstance(module, FixedPoint)]
    if not points:
        return {}
    standard, certified = errors_without_attack(_without_recurrence(model), images, labels, config)
    return {
        names.RHO_BOUND: max(contraction(module.weight).rate for module in points),
        **_largest([_solves(model, module, images[:_COUNTED]) for module in points]),
        names.STANDARD_ERROR_W0: standard,
        names.CERTIFIED_ERROR_W0: certified,
    }


def _without_recurrence(model: nn.Module) -> nn.Module:
    """A copy of the network with W = 0, where relu(W z + h) is relu(h)."""
    idle = copy.deepcopy(model)
    for name, layer in list(idle.named_modules(remove_duplicate=False)):
        if isinstance(layer, FixedPoint):
            idle.set_submodule(name, nn.ReLU())
    return idle


def _solves(model: nn.Module, module: FixedPoint, images: Tensor) -> dict[str, float]:
    """`module`'s solves while the network predicts the images: mean iterations, the largest residual, and the share
    that missed the tolerance, in percent."""
    solved: list[Solution] = []
    hook = module.register_forward_pre_hook(lambda m, inputs: solved.append(m.solve(inputs[0])))
    with torch.no_grad(), suppress(NotConvergedError):  # which the share tells
        model(images.double() / 255)
    hook.remove()
    return {
        names.ITERATIONS: float(solved[0].iterations.double().mean()),
        names.RESIDUAL: float(solved[0].residual.max()),
        names.NOT_CONVERGED: 100 * float((~solved[0].converged).double().mean()),
    }


def _largest(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: max(row[name] for row in rows) for name in rows[0]}
