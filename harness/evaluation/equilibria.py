"""What the recurrences of a trained network do: contraction, iterations, and errors without them."""

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn

from cerdeq.equilibrium import FixedPoint, NotConvergedError, Solution, contraction, replace_fixed_points
from harness.common import names
from harness.evaluation.ibp import count_without_attack

_SOLVED_IMAGES = 100  # the first ones, to ten digits, which takes longer than bounds


@dataclass(frozen=True)
class Recurrence:
    """What the equilibria of a network do on some images; empty lists without equilibria.

    rates: the bound on rho(|W|) of each. iterations: summed over solves, of each. residuals: the largest, of each.
    missed: the solves of each that missed the tolerance. solved: how many images were solved.
    correct, certified: how many images are with every W set to zero, by IBP, of `images` images.
    """

    rates: list[float] = field(default_factory=list)
    iterations: list[float] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    solved: int = 0
    correct: int = 0
    certified: int = 0
    images: int = 0

    def metrics(self) -> dict[str, float]:
        """Return the bound on rho(|W|), how clean solves end, and errors with W = 0; of several, the largest."""
        if not self.rates:
            return {}
        return {
            names.RHO_BOUND: max(self.rates),
            names.ITERATIONS: max(self.iterations) / self.solved,
            names.RESIDUAL: max(self.residuals),
            names.NOT_CONVERGED: 100 * max(self.missed) / self.solved,
            names.STANDARD_ERROR_W0: 100 * (1 - self.correct / self.images),
            names.CERTIFIED_ERROR_W0: 100 * (1 - self.certified / self.images),
        }


def join(parts: Sequence[Recurrence]) -> Recurrence:
    """Return what the equilibria do on the images of all parts."""
    solved = [part for part in parts if part.solved]
    return Recurrence(
        parts[0].rates,
        [sum(each) for each in zip(*(part.iterations for part in solved), strict=True)],
        [max(each) for each in zip(*(part.residuals for part in solved), strict=True)],
        [sum(each) for each in zip(*(part.missed for part in solved), strict=True)],
        *(sum(getattr(part, name) for part in parts) for name in ("solved", "correct", "certified", "images")),
    )


def observe_recurrence(
    model: nn.Module, x: Tensor, labels: Tensor, first: int, eps: Fraction, classes: int
) -> Recurrence:  # fmt: skip
    """Return what the equilibria of a float64 network in evaluation mode do on x [B, C, H, W], pixels in [0, 1].

    first: the index of the first image. eps: of the errors with W = 0.
    """
    fixed_points = [module for module in model.modules() if isinstance(module, FixedPoint)]
    if not fixed_points:
        return Recurrence()
    solved = x[: max(0, _SOLVED_IMAGES - first)]
    solutions = [_solutions(model, module, solved) for module in fixed_points] if len(solved) else []
    without_recurrence = copy.deepcopy(model)  # W = 0, where relu(W z + h) is relu(h)
    replace_fixed_points(without_recurrence, lambda layer: nn.ReLU())
    return Recurrence(
        [contraction(module.weight).rate for module in fixed_points],
        [float(solution.iterations.double().sum()) for solution in solutions],
        [float(solution.residual.max()) for solution in solutions],
        [int((~solution.converged).sum()) for solution in solutions],
        len(solved),
        *count_without_attack(without_recurrence, x, labels, eps, classes),
        len(x),
    )


def _solutions(model: nn.Module, module: FixedPoint, x: Tensor) -> Solution:
    """Return the solution of `module` while the network predicts x."""
    solutions: list[Solution] = []
    hook = module.register_forward_pre_hook(lambda m, inputs: solutions.append(m.solve(inputs[0])))
    with torch.no_grad(), suppress(NotConvergedError):  # `missed` counts them
        model(x)
    hook.remove()
    return solutions[0]
