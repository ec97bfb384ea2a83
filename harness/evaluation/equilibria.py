"""What the recurrences of a trained network do: contraction, iterations, and errors without them."""

import copy
from contextlib import suppress

import pandas as pd
import torch
from torch import Tensor, nn

from cerdeq.equilibrium import FixedPoint, NotConvergedError, Solution, contraction, replace_fixed_points
from harness.common import names
from harness.config.trial import Trial
from harness.evaluation.ibp import errors_without_attack

_SOLVED_IMAGES = 100  # to ten digits, which takes longer than bounds


def recurrence_report(model: nn.Module, images: Tensor, labels: Tensor, config: Trial) -> dict[str, float]:
    """Return the bound on rho(|W|), how clean solves end, and the errors with every W set to zero.

    Of several equilibria, return the largest numbers. Without equilibria, return no metrics.

    Args:
        model: float64, in evaluation mode.
    """
    fixed_points = [module for module in model.modules() if isinstance(module, FixedPoint)]
    if not fixed_points:
        return {}
    solves = pd.DataFrame([_solve_metrics(model, module, images[:_SOLVED_IMAGES]) for module in fixed_points])
    without_recurrence = copy.deepcopy(model)  # W = 0, where relu(W z + h) is relu(h)
    replace_fixed_points(without_recurrence, lambda layer: nn.ReLU())
    standard, certified = errors_without_attack(without_recurrence, images, labels, config)
    return {
        names.RHO_BOUND: max(contraction(module.weight).rate for module in fixed_points),
        **solves.max().to_dict(),
        names.STANDARD_ERROR_W0: standard,
        names.CERTIFIED_ERROR_W0: certified,
    }


def _solve_metrics(model: nn.Module, module: FixedPoint, images: Tensor) -> dict[str, float]:
    """Return metrics of `module`'s solves while the network predicts the images.

    They are the mean iterations, the largest residual, and the percentage of solves that missed the tolerance.
    """
    solutions: list[Solution] = []
    hook = module.register_forward_pre_hook(lambda m, inputs: solutions.append(m.solve(inputs[0])))
    with torch.no_grad(), suppress(NotConvergedError):  # NOT_CONVERGED counts them
        model(images.double() / 255)
    hook.remove()
    return {
        names.ITERATIONS: float(solutions[0].iterations.double().mean()),
        names.RESIDUAL: float(solutions[0].residual.max()),
        names.NOT_CONVERGED: 100 * float((~solutions[0].converged).double().mean()),
    }
