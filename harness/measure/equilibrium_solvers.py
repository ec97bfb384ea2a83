"""`python -m harness.solvers`: our solvers of z = relu(W z + h) beside those of torchdeq, for speed and answer.

Random equilibria of a convolution and of a matrix, float32. W >= 0 unless --signed: with both signs sums cancel, and
z is found in a few steps whatever rho(|W|) is. All start at relu(h) and have the same relative tolerance. Ours stop
each example by itself, by its largest entry; torchdeq, with its defaults, stops the batch with its last example, by
Euclidean norms. Solvers are timed in turn, so that a machine whose speed drifts slows them alike.
"""

import argparse
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial

import torch
from torch import Tensor

from cerdeq.equilibrium.certificate import channel_matrix
from cerdeq.equilibrium.recurrence import apply_weight
from cerdeq.equilibrium.solver import SOLVERS, solve
from harness.command_line import OK
from harness.device import best_device
from harness.environment import device_title
from harness.errors import InputError
from harness.measure.timing import medians

_LIMIT = 1000
_EXACT = 1e-12
_BROYDEN_MEMORY = 30  # its default, all iterations, would take gigabytes
_TITLES = "{:12} {:>5} {:26} {:>11} {:>6} {:>9} {:>9} {:>7}"
_ROW = "{:12} {:>5g} {:26} {:>11.1f} {:>6} {:>9.1f} {:>9.1e} {:>7}"

Step = Callable[[Tensor, Tensor], Tensor]
Solver = Callable[[Step, Tensor, float], tuple[Tensor, Tensor]]  # step, h, tolerance -> z, and which met it [B]


@dataclass(frozen=True)
class Problem:
    """The equilibria of weight and h [B, ...], float32; exact: their solutions, float64."""

    weight: Tensor
    h: Tensor
    exact: Tensor

    def step(self, z: Tensor, h: Tensor) -> Tensor:
        """relu(W z + h) of some of the examples."""
        return torch.relu(apply_weight(self.weight, z) + h)


@dataclass(frozen=True)
class Measured:
    """What one solver does with one problem.

    iterations: a mean over examples of those in which each took part.
    calls: of f.
    milliseconds: the median over rounds.
    error: the largest over examples of max |z - exact| / max |exact|.
    missed: the examples that the solver itself says missed the tolerance.
    """

    iterations: float
    calls: int
    milliseconds: float
    error: float
    missed: int


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--rhos", nargs="+", type=float, default=[0.5, 0.9, 0.97, 0.99], help="of |W|")
    parser.add_argument("--signed", action="store_true", help="W of both signs")
    parser.add_argument("--channels", type=int, default=32, help="of the convolution; default: 32")
    parser.add_argument("--image", type=int, default=16, help="its height and width; default: 16")
    parser.add_argument("--units", type=int, default=512, help="of the dense W; default: 512")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--rounds", type=int, default=5)


def main(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises InputError where torchdeq is missing."""
    try:
        solvers = our_solvers() | torchdeq_solvers()
    except ImportError:
        raise InputError("torchdeq is not installed: uv run --group compare python -m harness.solvers") from None
    device = best_device()
    sign = "both signs" if options.signed else "W >= 0"
    print(f"{device_title(device)}, torch {torch.__version__}, batch {options.batch_size}, {sign}, "
          f"relative tolerance {options.tolerance:g}")  # fmt: skip
    print(_TITLES.format("equilibrium", "rho", "solver", "iterations", "calls", "ms", "error", "missed"))
    kinds = {
        "convolution": ((options.channels, options.channels, 3, 3), (options.channels, options.image, options.image)),
        "dense": ((options.units, options.units), (options.units,)),
    }
    for kind, (weight_shape, shape) in kinds.items():
        for rho in options.rhos:
            problem = random_problem(weight_shape, (options.batch_size, *shape), rho, options.signed, device)
            for name, each in compare(problem, solvers, options.tolerance, options.rounds).items():
                print(_ROW.format(kind, rho, name, *astuple(each)), flush=True)
    return OK


def our_solvers() -> dict[str, Solver]:
    """cerdeq's, by name."""
    return {solver: partial(_ours, solver) for solver in SOLVERS}


def torchdeq_solvers() -> dict[str, Solver]:
    """torchdeq's, by name. Raises ImportError where it is not installed."""
    from torchdeq.solver import get_solver

    kept = {"broyden": {"LBFGS_thres": _BROYDEN_MEMORY}}
    return {
        f"torchdeq {name}": partial(_theirs, get_solver(name), kept.get(name, {}))
        for name in ("fixed_point_iter", "anderson", "broyden")
    }


def _ours(solver: str, step: Step, h: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    solution = solve(step, torch.relu(h), h, tolerance, _LIMIT, solver)
    return solution.value, solution.converged


def _theirs(solver: Callable, kept: dict, step: Step, h: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    z, _, report = solver(
        lambda z: step(z, h), torch.relu(h), max_iter=_LIMIT, tol=tolerance, stop_mode="rel", **kept
    )  # fmt: skip
    return z, report["rel_lowest"] <= tolerance


def random_problem(
    weight_shape: tuple[int, ...], shape: tuple[int, ...], rho: float, signed: bool, device: torch.device
) -> Problem:
    """Normal h and W, or |W|, scaled to rho(|W|); the same numbers on every call."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(weight_shape, generator=generator, dtype=torch.float64)
    weight *= rho / torch.linalg.eigvals(channel_matrix(weight)).abs().max()
    weight = weight if signed else weight.abs()
    h = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight, h = weight.float().to(device), h.float().to(device)
    wide = Problem(weight.double(), h.double(), h)
    exact = solve(wide.step, torch.relu(wide.h), wide.h, _EXACT * (1 - rho), 100 * _LIMIT, "picard")
    if not bool(exact.converged.all()):
        raise ArithmeticError(f"the float64 solution at rho {rho:g} was not found")
    return Problem(weight, h, exact.value)


@torch.no_grad()
def compare(problem: Problem, solvers: dict[str, Solver], tolerance: float, rounds: int) -> dict[str, Measured]:
    """Each solver's measurements on one problem, by name."""
    answers = {name: _counted(problem, solver, tolerance) for name, solver in solvers.items()}  # warms up as well
    steps = {name: partial(solver, problem.step, problem.h, tolerance) for name, solver in solvers.items()}
    seconds = medians(steps, rounds, problem.h.device)
    return {
        name: Measured(iterations, calls, 1000 * seconds[name], error, missed)
        for name, (iterations, calls, error, missed) in answers.items()
    }


def _counted(problem: Problem, solver: Solver, tolerance: float) -> tuple[float, int, float, int]:
    """One run's iterations, calls, error and missed examples."""
    sizes = []

    def step(z: Tensor, h: Tensor) -> Tensor:
        sizes.append(len(z))
        return problem.step(z, h)

    z, met = solver(step, problem.h, tolerance)
    exact = problem.exact.flatten(1)
    error = (z.flatten(1).double() - exact).abs().amax(1) / exact.abs().amax(1)
    return sum(sizes) / len(exact), len(sizes), float(error.max()), int((~met).sum())
