"""The equilibrium layer, z = relu(W z + inject(x)), and its interval rule."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cerdeq.bounds.interval import Context, Interval, relu_box
from cerdeq.bounds.linear import Backward, Pulled
from cerdeq.bounds.operators import Operator, register
from cerdeq.boxes import Box
from cerdeq.equilibrium.adjoint import pull_back
from cerdeq.equilibrium.certificate import preactivation_box, verified_box
from cerdeq.equilibrium.implicit import attach, attach_interval
from cerdeq.equilibrium.recurrence import apply_lifted, apply_weight
from cerdeq.equilibrium.solver import Solution, iterate, solve
from cerdeq.equilibrium.weights import PARAMETRISATIONS

_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
_LIMIT = 20_000
_METHOD = "picard"  # where W has both signs, as many steps as Anderson, each at half the cost in a tenth of the memory


class NotConvergedError(RuntimeError):
    """Some examples' equilibria were not found to tolerance."""


class FixedPoint(nn.Module):
    """The map from h to the z with z = relu(W z + h): the leaf that bounds know.

    In training both solves are Picard iterations of fixed counts from zero; in evaluation the solve goes to a
    tolerance (relative, per example: 1e-5 in float32, 1e-10 in float64) and raises NotConvergedError where it misses.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, iterations: int, backward_iterations: int):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.iterations = iterations
        self.backward_iterations = backward_iterations

    def solve(
        self,
        h: Tensor,
        start: Tensor | None = None,
        tolerance: float | Tensor | None = None,
        method: str = _METHOD,
    ) -> Solution:
        """The equilibrium for h [B, ...], without gradient, with a report per example.

        start: what to iterate from, [B, ...]; relu(h) unless given. tolerance: one, or one per example [B];
        evaluation's unless given. method: picard or anderson.
        """
        return self._solve(self.weight, h, start, tolerance, method)

    def _solve(
        self,
        weight: Tensor,
        h: Tensor,
        start: Tensor | None = None,
        tolerance: float | Tensor | None = None,
        method: str = _METHOD,
    ) -> Solution:
        def step(z: Tensor, h: Tensor) -> Tensor:
            return torch.relu(apply_weight(weight, z) + h)

        start = torch.relu(h) if start is None else start
        tolerance = _TOLERANCE[h.dtype] if tolerance is None else tolerance
        with torch.no_grad():
            return solve(step, start, h, tolerance, _LIMIT, method)

    def forward(self, h: Tensor) -> Tensor:
        """z [B, ...] for h of the same shape; differentiable in h and W."""
        return self.at(self.weight, h)

    def at(self, weight: Tensor, h: Tensor) -> Tensor:
        """z for h under a W that was read before: in training every reading moves the parametrisation on."""
        with torch.no_grad():
            z = self._iterated(weight, h) if self.training else self._converged(weight, h)
        return torch.relu(apply_weight(weight, attach(weight, h, z, self.backward_iterations)) + h)

    def _iterated(self, weight: Tensor, h: Tensor) -> Tensor:
        return iterate(lambda z: torch.relu(apply_weight(weight, z) + h), torch.relu(h), self.iterations)

    def _converged(self, weight: Tensor, h: Tensor) -> Tensor:
        solution = self._solve(weight, h)
        if not bool(solution.converged.all()):
            missed = int((~solution.converged).sum())
            raise NotConvergedError(f"{missed} of {len(h)} equilibria missed the tolerance in {_LIMIT} iterations")
        return solution.value


class Equilibrium(nn.Module):
    """z = relu(W z + inject(x)), W a zero-padded stride-1 convolution (odd kernel_size) or dense (kernel_size None).

    inject: any traceable module from x to [B, channels, H, W], or [B, channels] for a dense W. W starts at its bound
    times the gain: rho(|W|) <= gain (1 - margin). Raises ValueError for an unknown parametrisation or an even kernel.
    """

    def __init__(
        self,
        channels: int,
        inject: nn.Module,
        kernel_size: int | None = 3,
        parametrisation: str = "perron",
        margin: float = 0.3,
        gain: float | None = 0.5,
        iterations: int = 10,
        backward_iterations: int = 6,
    ):
        super().__init__()
        if parametrisation not in PARAMETRISATIONS:
            raise ValueError(f"unknown parametrisation {parametrisation!r}; known: {', '.join(PARAMETRISATIONS)}")
        if kernel_size is not None and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, found {kernel_size}")
        if iterations < 1 or backward_iterations < 1:
            raise ValueError("iterations and backward_iterations must be at least 1")
        kernel = () if kernel_size is None else (kernel_size, kernel_size)
        free = torch.randn(channels, channels, *kernel)
        free /= free[0].numel()
        self.inject = inject
        self.recurrence = FixedPoint(free, iterations, backward_iterations)
        parametrize.register_parametrization(
            self.recurrence, "weight", PARAMETRISATIONS[parametrisation](channels, margin, gain)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The equilibrium z [B, channels, ...] of x."""
        return self.recurrence(self.inject(x))


def fold(model: nn.Module) -> None:
    """Replace every parametrisation in `model` by the weight it gives, in place: W as it is stored and certified."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            module.parametrizations.eval()  # type: ignore[union-attr]  # in training, reading W would change it
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _interval(ctx: Context, x: Interval, module: FixedPoint) -> Interval:
    """A verified box with `ctx.sound`; else the lifted equilibrium by fixed counts, differentiable, for training."""
    weight = ctx.kept[ctx.step] = module.weight
    clean = None if x.clean is None else module.at(weight, x.clean)
    if ctx.sound:
        proved = verified_box(weight, x.box)
        box = Box(proved.center.to(x.center), _rounded_up(proved.radius, proved.center, x.radius))
        ctx.preactivations[ctx.step] = preactivation_box(weight, x.box, box)
        return Interval(box.center, box.radius, clean)
    h = (x.center, x.radius)
    with torch.no_grad():
        solution = relu_box(ctx, *h)
        for _ in range(module.iterations):
            solution = relu_box(ctx, *apply_lifted(weight, solution, h))
    preactivation = apply_lifted(weight, attach_interval(weight, *h, *solution, module.backward_iterations), h)
    ctx.preactivations[ctx.step] = Box(*preactivation)
    return Interval(*relu_box(ctx, *preactivation), clean)


def _backward(ctx: Backward, coefficients: Tensor, h: Interval, module: FixedPoint) -> Pulled:
    weight = ctx.kept[ctx.step] if module.training else module.weight  # in training every reading moves it on
    return pull_back(ctx, coefficients, h, weight, module.backward_iterations)


def _alive(h: Box, module: FixedPoint) -> Tensor:
    """Where the pre-activation may be above 0; elsewhere z is 0, whatever h is."""
    preactivation = preactivation_box(module.weight.double(), Box(h.center.double(), h.radius.double()),
                                      verified_box(module.weight, h))  # fmt: skip
    return ~(preactivation.upper <= 0) & (h.radius > 0)


def _rounded_up(radius: Tensor, center: Tensor, like: Tensor) -> Tensor:
    """A float64 radius in the precision of `like`, with room for rounding radius and centre."""
    limits = torch.finfo(like.dtype)
    return (radius * (1 + 2 * limits.eps) + 2 * limits.eps * center.abs() + 2 * limits.tiny).to(like)


register(
    Operator(
        "fixed_point", _interval, (), {FixedPoint: lambda module: {"module": module}}, backward=_backward,
        unsettled=_alive,
    )
)  # fmt: skip
