"""alpha-CROWN: linear bounds with optimised slopes of relaxations (Xu et al. 2021).

Any slope between the two extremes is sound, so the search runs without outward rounding; its result is proved after.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.batch_sizes import SEARCH_COPIES, bytes_per_example
from cerdeq.bounds.crown import crown_ibp, over_tighter_boxes
from cerdeq.bounds.crown_pass import in_chunks, linear_lower_bound
from cerdeq.bounds.float32 import cast_to_float32
from cerdeq.bounds.query import Query, examples_of, larger
from cerdeq.gpu_readings import is_host_reading
from cerdeq.operators.backward import Backward
from cerdeq.precision import uncounted_rounding
from cerdeq.tracing.program import Program

ITERATIONS = 30
_RATE, _DECAY = 0.25, 0.93
_MOMENTS = 0.9, 0.999


def alpha_crown(query: Query) -> Tensor:
    """Return linear bounds with optimised slopes over tightened boxes, or those of CROWN where they are better."""
    lower = crown_ibp(query)
    if query.target is not None:  # slopes cost less than boxes, and are often enough
        lower = query.raise_bounds(lower, _with_optimised_slopes)
    lower = over_tighter_boxes(query, lower, lambda tight, lower: tight.raise_bounds(lower, _with_optimised_slopes))
    return _raised_by_steps(query, lower)


def _raised_by_steps(query: Query, lower: Tensor) -> Tensor:
    """Raise the bounds of undecided examples by those of a step that bounds the network by itself."""
    for step in query.program.steps:
        if step.record is None or step.record.row_bounds is None:
            continue
        for example in query.undecided(lower)[:, None]:
            one = query.of(example)
            if (bounds := step.record.row_bounds(query.program, one.values, one.spec[0])) is not None:
                lower[example] = larger(lower[example], bounds[None])
    return lower


def _with_optimised_slopes(query: Query) -> Tensor:
    """Return linear bounds with optimised slopes, [B, K] in float64; the search is in float32 if it may."""
    program, spec = query.program, query.spec
    search_program = program if query.float32 is None else query.float32
    shape = query.values[program.output].center.shape[1:]
    lower = torch.full(spec.shape[:2], -torch.inf, dtype=torch.float64, device=spec.device)
    at_once = max(1, query.memory // (SEARCH_COPIES * bytes_per_example(query.values)))
    for start, stop in in_chunks(len(spec), at_once // spec.shape[1]):
        examples = torch.arange(start, stop, device=spec.device)
        values = examples_of(program, query.values, examples)
        search_values = values if search_program is program else cast_to_float32(search_program, values)
        for first, last in in_chunks(spec.shape[1], at_once // len(examples)):
            rows = spec[examples, first:last].unflatten(2, shape)
            slopes = optimise_slopes(search_program, search_values, rows.to(search_values[0].center), query.target)
            proof = Backward(sound=True, slopes={name: slope.to(spec) for name, slope in slopes.items()})
            lower[examples, first:last] = linear_lower_bound(program, values, rows, program.output, proof)
    return lower


def optimise_slopes(program: Program, values: list[Any], spec: Tensor, target: float | None) -> dict[str, Tensor]:
    """Return the slopes [B, K, *shape] with each row's best bound, for each relaxation of the program by step name.

    values: of a forward pass; spec: [B, K, N] of the output. Each row has slopes of its own.
    """
    start = Backward(sound=False, choices={})
    lower = linear_lower_bound(program, values, spec, program.output, start)
    shape = spec.shape[:2]

    def evaluate(examples: Tensor, slopes: dict[str, Tensor]) -> Tensor:
        boxes, ctx = examples_of(program, values, examples), Backward(sound=False, slopes=slopes)
        return linear_lower_bound(program, boxes, spec[examples], program.output, ctx)

    slopes = {name: slope.expand(*shape, *slope.shape[2:]) for name, slope in (start.choices or {}).items()}
    best, _ = ascend(evaluate, slopes, lower, target, ITERATIONS)
    return best


def ascend(
    evaluate: Callable[[Tensor, dict[str, Tensor]], Tensor], choices: dict[str, Tensor], lower: Tensor,
    target: float | None, steps: int, rate: Callable[[Tensor], Tensor | float] = lambda examples: 1.0,
    largest: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """Return the choices [B, K, *shape] with each row's best bound, and the bounds [B, K], by Adam with a falling rate.

    With a target, rows above it are not improved, and an example leaves when all of its rows are above it.

    Args:
        evaluate: returns the bounds of these examples, by their numbers, with these choices; differentiable.
        choices, lower: where to start.
        rate: of examples, a factor of the usual one.
        largest: the largest allowed value of each choice, by default 1; the smallest is 0.
    """
    best = {name: choice.clone() for name, choice in choices.items()}
    choices = {name: choice.clone() for name, choice in choices.items()}
    moments = {name: (torch.zeros_like(choice), torch.zeros_like(choice)) for name, choice in choices.items()}
    lower, active = lower.clone(), torch.arange(len(lower), device=lower.device)
    for iteration in range(steps if choices else 0):
        undecided = torch.ones_like(active, dtype=torch.bool)
        if target is not None:
            undecided = ~(lower[active] > target).all(1)
            if is_host_reading(iteration, active.device) and len(stay := undecided.nonzero()[:, 0]) < len(active):
                active, undecided = active[stay], undecided[stay]
                choices = {name: choice[stay] for name, choice in choices.items()}
                moments = {name: (m[stay], v[stay]) for name, (m, v) in moments.items()}
        if not len(active):
            break
        free = {name: choice.detach().requires_grad_() for name, choice in choices.items()}
        with torch.enable_grad(), uncounted_rounding():
            now = evaluate(active, free)
            objective = now if target is None else now.clamp(max=target)
            gradients = torch.autograd.grad(objective.sum(), list(free.values()))
        now = now.detach().to(lower)
        better = (now > lower[active]) & undecided[:, None]
        lower[active] = torch.where(better, now, lower[active])
        for (name, choice), gradient in zip(choices.items(), gradients, strict=True):
            before, is_better = best[name][active], better.view(*better.shape, *[1] * (choice.dim() - 2))
            best[name][active] = torch.where(is_better, choice, before)
            end = choice.new_ones(()) if largest is None else largest
            _adam_step(choice, gradient, moments[name], iteration, rate(active), end)
    return best, lower


@torch.no_grad()
def _adam_step(
    choices: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], iteration: int, rate: float | Tensor,
    largest: Tensor,
) -> None:  # fmt: skip
    """Take one step of Adam upwards, in place, within 0 and `largest`. iteration: counted from 0."""
    first, second = moments
    first.lerp_(gradient, 1 - _MOMENTS[0])
    second.lerp_(gradient.square(), 1 - _MOMENTS[1])
    mean = first / (1 - _MOMENTS[0] ** (iteration + 1))
    spread = (second / (1 - _MOMENTS[1] ** (iteration + 1))).sqrt()
    choices.add_(rate * _RATE * _DECAY**iteration * mean / (spread + 1e-12)).clamp_(min=0)
    choices.copy_(torch.minimum(choices, largest))
