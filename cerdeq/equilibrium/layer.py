"""The equilibrium layer, z = relu(W z + inject(x)); bounds of it are in rules.py."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cerdeq.equilibrium.certificate import Contraction, NotContractiveError, contraction
from cerdeq.equilibrium.gradients import split_with_implicit_gradient, with_implicit_gradient
from cerdeq.equilibrium.methods import ADJOINTS, IMPLICIT, PICARD, Implicit, PeacemanRachford, Picard, Solver, Unrolled
from cerdeq.equilibrium.monotone.proof import Monotonicity, monotonicity
from cerdeq.equilibrium.monotone.splitting import Splitting
from cerdeq.equilibrium.recurrence import dense_weight, fixed_point_step
from cerdeq.equilibrium.solver import (
    AndersonSteps,
    NotConvergedError,
    PicardSteps,
    Solution,
    near_equilibrium,
    picard_steps,
    solve_to_tolerance,
)
from cerdeq.equilibrium.weights import PARAMETRISATIONS, Parametrisation

_EVALUATION_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
_EVALUATION_LIMIT = 20_000
_ATTACK_TOLERANCE, _ATTACK_LIMIT = 1e-3, 100
_ATTACK_PICARD_STEPS = 8  # mostly enough from the last solution, and a step takes a third of Anderson's time


class _SharedCache(dict[Any, tuple[Tensor, Any]]):
    """Results for a W, by their names, each with its W. Copies of a module share it: proofs of a large W take long."""

    def __deepcopy__(self, memo: Any) -> "_SharedCache":
        return self


class FixedPoint(nn.Module):
    """The map from h to the z with z = relu(W z + h): the operator in the rule table.

    weight: W, [C, C, k, k] or [N, N].
    solver: Picard(), which needs rho(|W|) < 1, or PeacemanRachford(), which needs I - W to be strongly monotone.
    adjoint: Implicit() or Unrolled(), how z is differentiated.
    warm_start: the lifted solve starts from the clean equilibrium.

    In evaluation the forward pass raises NotConvergedError if an example misses the solver's tolerance.
    """

    weight: Tensor

    def __init__(
        self, weight: Tensor, solver: Solver = PICARD, adjoint: Implicit = IMPLICIT, warm_start: bool = False
    ):  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.solver, self.adjoint, self.warm_start = solver, adjoint, warm_start
        self.set_progress(0.0)
        self._of_weight = _SharedCache()

    @property
    def is_split(self) -> bool:
        """True if the solver is Peaceman-Rachford splitting."""
        return isinstance(self.solver, PeacemanRachford)

    @property
    def iteration_range(self) -> tuple[int, int]:
        """The iterations of the training solve at the start of eps's ramp and at its end."""
        return self.solver.iterations_at(0.0), self.solver.iterations_at(1.0)

    @property
    def is_unrolled(self) -> bool:
        """True if the gradient in training is that of the solver's steps themselves."""
        return isinstance(self.adjoint, Unrolled)

    def contraction(self, weight: Tensor) -> Contraction:
        """Return `certificate.contraction` of a W, which is computed again only when W changes."""
        return self._cached("contraction", weight, contraction)

    def monotonicity(self, weight: Tensor, shape: torch.Size) -> Monotonicity:
        """Return `monotone.proof.monotonicity` of W on values [*shape], which is computed again only when W changes."""

        def prove(weight: Tensor) -> Monotonicity:
            return monotonicity(dense_weight(weight, shape), self._splitting(weight, shape))

        return self._cached(("monotonicity", shape), weight.double(), prove)

    def refuse_unproved(self, weight: Tensor, shape: torch.Size) -> None:
        """Raise NotContractiveError if neither proof says that there is one equilibrium for values [*shape]."""
        contraction, monotonicity = self.contraction(weight), self.monotonicity(weight, shape)
        if not contraction.rate < 1 and not monotonicity.is_proved:
            raise NotContractiveError(
                f"no equilibrium is proved: it needs rho(|W|) < 1, whose bound is {contraction.rate:.6f}, or "
                f"I - (W + W^T) / 2 positive definite, whose least eigenvalue is about {monotonicity.modulus:.6f}"
            )

    def _cached(self, name: Any, weight: Tensor, compute: Callable[[Tensor], Any]) -> Any:
        """Return what `compute` returns for a W; it is called again when W has changed."""
        key = name, weight.dtype, weight.device
        before, result = self._of_weight.get(key, (None, None))
        if before is None or not torch.equal(before, weight):
            before, result = weight.detach().clone(), compute(weight.detach())
            self._of_weight[key] = before, result
        return result

    def set_progress(self, progress: float) -> None:
        """Set the iterations of the training solve for eps at `progress` (0 to 1) of its target."""
        self.iterations = self.solver.iterations_at(progress)

    def without_parametrisation(self) -> "FixedPoint":
        """Return a module of the same map whose W, as it is now, is a parameter without parametrisation."""
        copy = FixedPoint(self.weight.detach(), self.solver, self.adjoint, self.warm_start)
        copy.iterations = self.iterations
        return copy.train(self.training)

    def solve(self, h: Tensor, weight: Tensor | None = None) -> Solution:
        """Return the equilibrium for h [B, ...] as evaluation solves it, without gradient, with a report per example.

        An example that misses the tolerance is no error. weight: a W that was read before; by default it is read here.
        """
        weight = self.weight if weight is None else weight
        if self.is_split:
            solution = self._splitting(weight, h.shape[1:]).solve(h.flatten(1))
            return replace(solution, value=solution.value.to(h).view_as(h), residual=solution.residual.to(h))
        if h.dtype not in _EVALUATION_TOLERANCE:  # as autocast leaves it
            solution = self.solve(h.float(), weight.float())
            return replace(solution, value=solution.value.to(h.dtype))
        step, tolerance = partial(fixed_point_step, weight), _EVALUATION_TOLERANCE[h.dtype]
        with torch.no_grad():
            start, before = torch.relu(h), torch.zeros(len(h), dtype=torch.long, device=h.device)
            if h.dtype == torch.float64:
                start, before = near_equilibrium(weight, h)
            for steps in (PicardSteps, AndersonSteps):
                solution = solve_to_tolerance(step, start, h, tolerance, _EVALUATION_LIMIT, steps)
                start, before = solution.value, before + solution.iterations
                if bool(solution.converged.all()):
                    break
        return replace(solution, iterations=before)

    def forward(self, h: Tensor) -> Tensor:
        """Return z [B, ...] for h of the same shape; differentiable in h and W."""
        return self.at(self.weight, h)

    def at(self, weight: Tensor, h: Tensor) -> Tensor:
        """Return z for h under a W that was read before: in training every reading moves the parametrisation on."""
        if self.is_split:
            matrix, splitting = dense_weight(weight, h.shape[1:]), self._splitting(weight, h.shape[1:])
            try:
                z = splitting.equilibria(h.flatten(1), self.training)
            except NotConvergedError:
                self.refuse_unproved(weight, h.shape[1:])
                raise
            return split_with_implicit_gradient(matrix, h.flatten(1), z, splitting).view_as(h)
        if self.training and self.is_unrolled:
            return self._iterated(weight, h)
        with torch.no_grad():
            z = self._iterated(weight, h) if self.training else self._solved_to_tolerance(weight, h)
        return fixed_point_step(weight, with_implicit_gradient(weight, h, z, self.adjoint.iterations), h)

    def _splitting(self, weight: Tensor, shape: torch.Size) -> Splitting:
        return self._cached(("splitting", shape), weight.double(), lambda w: Splitting(dense_weight(w, shape)))

    def _iterated(self, weight: Tensor, h: Tensor) -> Tensor:
        return picard_steps(lambda z: fixed_point_step(weight, z, h), torch.relu(h), self.iterations)

    def _solved_to_tolerance(self, weight: Tensor, h: Tensor) -> Tensor:
        solution = self.solve(h, weight)
        if missed := int((~solution.converged).sum()):
            raise NotConvergedError(
                f"{missed} of {len(h)} equilibria missed the tolerance in {_EVALUATION_LIMIT} iterations"
            )
        return solution.value


class Equilibrium(nn.Module):
    """z = relu(W z + inject(x)), where rho(|W|) is at most gain (1 - margin).

    At first rho(|W|) is at this bound. "perron" and "nonnegative" only scale down, so they may start at 0.8 gain.

    channels: of z.
    inject: any traceable module from x to [B, channels, H, W], or [B, channels] for a dense W.
    kernel_size: odd, at least 1, of a W that is a zero-padded stride-1 convolution; None for a dense one.
    parametrisation: a name in PARAMETRISATIONS, which says how W is made.
    margin, gain, margin_start, channel_gain: of the parametrisation, as in `cerdeq.equilibrium.weights`.
    groups: for "orthogonal" alone, the number of blocks of channels that W does not connect.
    iterations, early_iterations: of `Picard`. backward_iterations: of the adjoint, whose name is `gradient`: "implicit"
    or "unrolled". warm_start: as in `FixedPoint`.

    Raises ValueError for an unknown parametrisation or gradient, an even kernel, or a number out of range.
    """

    def __init__(
        self, channels: int, inject: nn.Module, kernel_size: int | None = 3, parametrisation: str = "perron",
        margin: float = 0.3, gain: float | None = 0.5, channel_gain: bool = False, groups: int = 1,
        margin_start: float | None = None,
        iterations: int = 10, backward_iterations: int = 6, early_iterations: int | None = None,
        gradient: str = "implicit", warm_start: bool = False,
    ):  # fmt: skip
        super().__init__()
        if parametrisation not in PARAMETRISATIONS:
            raise ValueError(f"unknown parametrisation {parametrisation!r}; known: {', '.join(PARAMETRISATIONS)}")
        if gradient not in ADJOINTS:
            raise ValueError(f"unknown gradient {gradient!r}; known: {', '.join(ADJOINTS)}")
        if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
            raise ValueError(f"kernel_size must be odd and at least 1, found {kernel_size}")
        if groups < 1 or channels % groups or (groups > 1 and parametrisation != "orthogonal"):
            raise ValueError(
                f"groups must divide {channels} channels, and be 1 unless parametrisation is orthogonal; found {groups}"
            )
        kernel = () if kernel_size is None else (kernel_size, kernel_size)
        with torch.random.fork_rng(devices=[]):  # so that the other weights are drawn as they are without W
            free = torch.empty(channels, channels // groups, *kernel)
            if not free.is_meta:  # there, drawing imports torch's compiler, which takes over a second
                free.normal_()
        free /= free[0].numel()
        self.inject = inject
        solver, adjoint = Picard(iterations, early_iterations), ADJOINTS[gradient](backward_iterations)
        self.recurrence = FixedPoint(free, solver, adjoint, warm_start)
        shape = PARAMETRISATIONS[parametrisation](channels, margin, gain, margin_start, channel_gain)
        # unsafe: no trial run, which in training moves W on; on the device "meta" it would import torch's compiler, too
        parametrize.register_parametrization(self.recurrence, "weight", shape, unsafe=groups > 1 or free.is_meta)

    def forward(self, x: Tensor) -> Tensor:
        """Return the equilibrium z [B, channels, ...] of x."""
        return self.recurrence(self.inject(x))


def fold(model: nn.Module) -> None:
    """Replace every equilibrium's parametrised W in `model` by its value: W as it is stored and certified.

    The FixedPoint becomes a new module, without hooks: torch's `remove_parametrizations` would change the class that it
    shares with its copies. Parametrisations of other modules do not change. Raises ValueError if `model` itself is such
    a FixedPoint.
    """
    if isinstance(model, FixedPoint) and parametrize.is_parametrized(model):
        raise ValueError("a FixedPoint alone cannot be folded in place: call its without_parametrisation()")

    def plain(layer: FixedPoint) -> FixedPoint:
        if not parametrize.is_parametrized(layer):
            return layer
        layer.parametrizations.eval()  # type: ignore[union-attr]  # in training, reading W would change it
        return layer.without_parametrisation()

    replace_fixed_points(model, plain)


def replace_fixed_points(model: nn.Module, replacement: Callable[[FixedPoint], nn.Module]) -> None:
    """Put its replacement in place of every FixedPoint below `model`."""
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if name and isinstance(layer, FixedPoint):
            model.set_submodule(name, replacement(layer))


def set_progress(model: nn.Module, progress: float) -> None:
    """Set scheduled values of every equilibrium of `model` for eps at `progress` (0 to 1) of its target."""
    for module in model.modules():
        if isinstance(module, FixedPoint | Parametrisation):
            module.set_progress(progress)


class _AttackFixedPoint(nn.Module):
    """About the equilibrium of h, from the last solution of that shape; differentiable in h."""

    def __init__(self, module: FixedPoint):
        super().__init__()
        self.weight = nn.Parameter(module.weight.detach(), requires_grad=False)
        self.adjoint = module.adjoint
        self.last: Tensor | None = None

    def forward(self, h: Tensor) -> Tensor:
        start = self.last if self.last is not None and self.last.shape == h.shape else torch.relu(h.detach())
        step, solve = partial(fixed_point_step, self.weight), partial(solve_to_tolerance, tolerance=_ATTACK_TOLERANCE)
        with torch.no_grad():
            solution = solve(step, start, h, limit=_ATTACK_PICARD_STEPS)
            self.last, rest = solution.value, (~solution.converged).nonzero()[:, 0]
            if len(rest):
                self.last[rest] = solve(step, self.last[rest], h[rest], limit=_ATTACK_LIMIT, steps=AndersonSteps).value
        return step(with_implicit_gradient(self.weight, h, self.last, self.adjoint.iterations), h)


def use_attack_solvers(model: nn.Module) -> None:
    """Replace every FixedPoint in `model` by one for attacks, which solve much the same equilibria again and again.

    It solves to three digits, from its last solution. The outputs of such a network depend on its earlier outputs, and
    nothing is proved: check the result with the original network.
    """
    fold(model)
    replace_fixed_points(model, lambda layer: layer if layer.is_split else _AttackFixedPoint(layer))


def restrict_solutions(model: nn.Module, examples: Tensor | None) -> None:
    """Forget the last solutions of all but these examples, the next batch; of all examples for None."""
    for module in model.modules():
        if isinstance(module, _AttackFixedPoint):
            module.last = None if examples is None or module.last is None else module.last[examples]
