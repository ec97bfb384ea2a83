"""Backward rules: linear lower bounds of a functional of the network (CROWN; Zhang et al. 2018; Xu et al. 2020).

Coefficients A [B, K, *shape of v] define K functionals A . v of one value v of the network, for each example. A rule
replaces v = f(p) by p: it returns coefficients on p and a constant so that A . v >= coefficients . p + constant
wherever p lies in its box. Upper bounds are lower bounds of -A.

With `sound` set, rounding is counted outwards. An affine rule that computes fl(A W) in place of A W is off, in the
functional, by at most gamma_n |A| (|W| m + |b|), where m bounds |p| and n is the number of outputs that one input
reaches; the sum over W is one forward pass of |W|, so that proving costs one inner product a rule. Constants are
summed in float64. docs/developers/rounding.md has the proof.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from cerdeq.operators.interval import Context, Interval, PrecisionError, tensor_like
from cerdeq.precision import without_autocast


@dataclass(frozen=True)
class Pulled:
    """coefficients: one tensor [B, K, *shape] for each bounded argument in order. constant: [B, K], rounded down."""

    coefficients: tuple[Tensor, ...]
    constant: Tensor


@dataclass
class Backward:
    """What rules share during one backward pass.

    sound: whether to round outwards.
    step: the name of the step.
    output: the step's bounded value.
    slopes: free choices by name, [B, K, *shape], 0 to 1: by a step's name, where between its two extremes the free line
        of its relaxation lies. By default the relaxation's area is small.
    choices: if a dictionary, receives every choice.
    saved: `Context.saved` of the forward pass.
    splits: by step with an activation, [B, *shape]: 1 for inputs with a pre-activation of at least 0 alone, -1 for
        those with one of at most 0, else 0. The bound holds for inputs that meet all of them.
    units: by step with a ReLU, flat numbers [U] of its unstable units, where all examples have one box: slopes and
        splits of the step are of these units alone, [B, K, U] and [B, U], and so is what `relaxations` receives.
    relaxations: if a dictionary, receives by step the coefficients of an activation and its relaxation, and under ""
        the input's coefficients.
    constants: by step and name, what does not depend on coefficients. Passes over the same values and slopes may
        share it.
    """

    sound: bool
    step: str = ""
    output: Interval | None = None
    slopes: dict[str, Tensor] = field(default_factory=dict)
    choices: dict[str, Tensor] | None = None
    saved: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Tensor] = field(default_factory=dict)
    units: dict[str, Tensor] = field(default_factory=dict)
    relaxations: dict[str, Any] | None = None
    constants: dict[tuple[str, str], Any] = field(default_factory=dict)

    def constant(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returns for this step, computed once for all passes that share `constants`.

        In a tuple it returns tensors [B, *shape], [B, 1, *shape] or [B, 1].
        """
        key = self.step, name
        if key not in self.constants:
            self.constants[key] = compute()
        return self.constants[key]


Rule = Callable[..., Pulled]


def per_row(value: Tensor) -> Tensor:
    """Return a value [B, *shape] so that it broadcasts over coefficients [B, K, *shape]."""
    return value.unsqueeze(1)


def dot(ctx: Backward, coefficients: Tensor, value: Tensor) -> Tensor:
    """Return the sums [B, K] of coefficients [B, K, *shape] times value [B, *shape]; in float64 if `ctx.sound`."""
    if ctx.sound and coefficients.dtype != torch.float64:
        return (coefficients * per_row(value)).flatten(2).sum(2, dtype=torch.float64)
    if torch.compiler.is_compiling():  # fused with what is around it; a product would copy channels-last coefficients
        return (coefficients * per_row(value)).sum(tuple(range(2, coefficients.dim())))
    flat = value.expand(len(coefficients), *value.shape[1:]).flatten(1)
    if ctx.sound:  # the vector first: with the matrix first, CPUs take five times as long
        return torch.bmm(flat.unsqueeze(1), coefficients.flatten(2).mT).squeeze(1)
    with without_autocast(flat):
        return torch.einsum("bkn,bn->bk", coefficients.flatten(2), flat)


def slack(ctx: Backward, coefficients: Tensor, magnitude: Tensor, terms: int, sizes: Tensor | None = None) -> Tensor:
    """Return what rounding may cost, [B, K]; 0 if it is not counted. sizes: |coefficients|, where they are at hand."""
    if not ctx.sound:
        return coefficients.new_zeros(())
    costs, rest = rounding_costs(magnitude.to(coefficients.dtype), terms)
    return dot(ctx, coefficients.abs() if sizes is None else sizes, costs) + rest


def rounding_costs(magnitude: Tensor, terms: int, inner: int | None = None) -> tuple[Tensor, Tensor]:
    """Return costs [B, *shape] and a rest [B, 1] such that rounding costs at most |coefficients| . costs + rest.

    They cover coefficients made by sums of `terms` products and a sum over all of them, of values up to `magnitude`
    [B, *shape]: twice gamma, for their own rounding, and twice that for what else a rule rounds. With `inner`, it
    rounds nothing else, and each magnitude is a sum of so many products, of numbers of at least 0: then they are little
    more than gamma. The rest, and as much of each cost, is for underflow. docs/developers/rounding.md has the proof.

    Raises PrecisionError if there are too many terms for the precision.
    """
    limits, size = torch.finfo(magnitude.dtype), magnitude[0].numel()
    in_double = size * torch.finfo(torch.float64).eps
    share = (terms + (inner or 0) + 8) * limits.eps + in_double
    if share > 0.125:
        raise PrecisionError(f"{terms} terms are too many to round outwards in {magnitude.dtype}; use float64")
    factor = 2 * share if inner is None else ((terms + 8) * limits.eps / 2 + in_double) * (1 + 2 * share)
    total = magnitude.double().flatten(1).sum(1)
    rest = 8 * (terms + (inner or 0) + size) * limits.tiny * (1 + total)
    each = rest.view(-1, *[1] * (magnitude.dim() - 1))
    return (factor * magnitude + each).to(magnitude.dtype), rest[:, None]


def rounded_constant(
    ctx: Backward, coefficients: Tensor, costs: tuple[Tensor, Tensor], offset: Tensor | None = None
) -> Tensor:
    """Return coefficients . offset [B, *shape] less the costs of rounding, of `rounding_costs`: [B, K]."""
    each, rest = costs
    constant = -dot(ctx, coefficients.abs(), each) - rest
    return constant if offset is None else constant + dot(ctx, coefficients, offset)


def magnitude(x: Interval) -> Tensor:
    """Return at least |p| everywhere in the box, up to rounding that `slack` covers."""
    return x.center.abs() + x.radius


def free_choice(ctx: Backward, name: str, default: Tensor) -> Tensor:
    """Return the free choice `name` of this pass, [B, 1 or K, *shape], within 0 and 1; any is sound."""
    choice = ctx.slopes.get(name, default)
    if ctx.choices is not None:
        ctx.choices[name] = choice
    return choice.clamp(0, 1) if ctx.sound else choice  # the clamp has no gradient at its ends


def affine(function: Callable[..., Tensor], interval: Callable[..., Interval], fan_out: Callable | None = None) -> Rule:
    """Return the backward rule of an affine operator, by differentiating it.

    function: the operator on tensors, affine in all of its bounded arguments together. interval: its interval rule,
    from which magnitudes come. fan_out: how many outputs one element of an input reaches, from the coefficients and
    the arguments; by default, all.
    """

    def rule(ctx: Backward, coefficients: Tensor, *args: Any, **kwargs: Any) -> Pulled:
        offset, pull = _at_zero(function, args, kwargs, coefficients.dtype)
        pulled = vmap(pull, in_dims=1, out_dims=1)(coefficients)

        def terms() -> int:
            return coefficients[0, 0].numel() if fan_out is None else fan_out(coefficients, *args, **kwargs)

        rounding = _rounding(ctx, coefficients, interval, args, kwargs, terms)
        return Pulled(pulled, dot(ctx, coefficients, offset) - rounding)

    return rule


def moving(function: Callable[..., Tensor], interval: Callable[..., Interval]) -> Rule:
    """Return the backward rule of an operator that moves numbers, or makes copies of them, or leaves some out.

    function, interval: as of `affine`.
    """

    def copies(coefficients: Tensor, *args: Any, **kwargs: Any) -> int:
        offset, pull = _at_zero(function, args, kwargs, torch.float64)
        return max(int(counts.max()) if counts.numel() else 0 for counts in pull(torch.ones_like(offset)))

    return affine(function, interval, copies)


def _at_zero(function: Callable[..., Tensor], args: Any, kwargs: Any, dtype: torch.dtype) -> tuple[Tensor, Callable]:
    """Return an affine function's result at inputs of 0, and what pulls coefficients of its result back to inputs."""

    def apply(*values: Tensor) -> Tensor:
        return function(*_with(args, iter(values), dtype), **kwargs)

    zeros = [torch.zeros_like(box.center, dtype=dtype) for box in _boxes(args)]
    offset, pull = vjp(apply, *zeros)  # type: ignore[misc]  # two of them without has_aux
    return offset, pull


def combination(weights: Callable[..., list[tuple[Any, Any]]], interval: Callable[..., Interval]) -> Rule:
    """Return the backward rule of a sum of values times constants, element by element.

    weights: from the operator's arguments, pairs of a summand, bounded or not, and its constant factor. interval: its
    interval rule, from which magnitudes come.
    """

    def rule(ctx: Backward, coefficients: Tensor, *args: Any, **kwargs: Any) -> Pulled:
        pulled, constant, copies = [], coefficients.new_zeros(()), 1
        for summand, factor in weights(*args, **kwargs):
            weighted = coefficients * _constant_per_row(factor, coefficients)
            if isinstance(summand, Interval):
                pulled.append(weighted.sum_to_size(*coefficients.shape[:2], *summand.center.shape[1:]))
                copies = max(copies, coefficients[0, 0].numel() // summand.center[0].numel())
            else:
                products = weighted * _constant_per_row(summand, coefficients)
                constant = constant + products.flatten(2).sum(2, dtype=torch.float64 if ctx.sound else None)
        rounding = _rounding(ctx, coefficients, interval, args, kwargs, lambda: copies)
        return Pulled(tuple(pulled), (constant - rounding).expand(coefficients.shape[:2]))

    return rule


def _constant_per_row(constant: Any, coefficients: Tensor) -> Any:
    """Return a constant so that it broadcasts over coefficients [B, K, *shape]."""
    value = tensor_like(constant, coefficients)
    return value.unsqueeze(1) if value.dim() == coefficients.dim() - 1 else value


def _boxes(args: Any) -> list[Interval]:
    return [arg for arg in nested_items(args) if isinstance(arg, Interval)]


def _rounding(
    ctx: Backward, coefficients: Tensor, interval: Callable, args: Any, kwargs: Any, terms: Callable[[], int]
) -> Tensor:
    """Return what an affine rule's rounding may cost, by the interval rule at magnitudes in place of values."""
    if not ctx.sound:
        return coefficients.new_zeros(())

    def costs() -> tuple[Tensor, Tensor]:
        sizes = (Interval(torch.zeros_like(box.center), magnitude(box)) for box in _boxes(args))
        largest = magnitude(interval(Context(sound=True), *_with(args, sizes, coefficients.dtype), **kwargs))
        return rounding_costs(largest.to(coefficients.dtype), terms())

    return -rounded_constant(ctx, coefficients, ctx.constant("costs", costs))


def nested_items(args: Any) -> list[Any]:
    """Return the arguments, with the items of lists, tuples and slices among them in place of these."""
    args = [[arg.start, arg.stop, arg.step] if isinstance(arg, slice) else arg for arg in args]
    return [item for arg in args for item in (nested_items(arg) if isinstance(arg, list | tuple) else [arg])]


def _with(args: Any, replacements: Any, dtype: torch.dtype) -> Any:
    """Return arguments with Intervals replaced in order, and constants in the coefficients' precision."""
    changed: list[Any] = []
    for arg in args:
        if isinstance(arg, list | tuple):
            changed.append(type(arg)(_with(arg, replacements, dtype)))
        elif isinstance(arg, Interval):
            changed.append(next(replacements))
        else:
            constant = isinstance(arg, Tensor) and arg.is_floating_point()
            changed.append(arg.to(dtype) if constant else arg)
    return changed
