"""The record of an operator: its rules and properties."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from cerdeq.operators.backward import Rule
from cerdeq.operators.interval import Interval


@dataclass(frozen=True)
class Operator:
    """The rules and properties of one operator.

    interval: rule (Context, *args, **kwargs) -> Interval, with the arguments of the functional form.
    functions: its functionals and tensor methods.
    modules: for each module class, the arguments that follow the input.
    backward: Optional. Rule (Backward, coefficients, *args, **kwargs) -> Pulled, `backward.affine` of an affine
        operator. Without it only IBP can bound the operator.
    needs_tighter_box: Optional. (Box, **options) -> a mask of the inputs whose tighter box makes the relaxation
        tighter. Affine operators have none.
    refine: Optional. (crown.Tighter, result, *args, **kwargs) -> the result over tightened pre-activations, of an
        operator that has its own.
    preactivation: Optional. (result, *args, **kwargs) -> Tensor, of points: an activation's values whose sign may be
        split on.
    points: Optional. (Context, Tensor, *args, **kwargs) -> Tensor, from what the context has saved, of an operator
        that in training depends on the batch or changes with each reading.
    row_bounds: Optional. (program, values of one example, spec [K, N]) -> lower bounds [K] of a whole network, or
        None for networks that it has no bounds for.
    bounded: which arguments may be bounded values: the "first" alone, "one" at any position, "any", or "list", any of
        those in the first argument.
    affine: of an affine operator of one bounded argument, whether each element of the result "sums" elements of the
        argument, is made of a "single" one, or is one, in a "view" that may share memory; None where none is known.
    windows: how the backward rule takes windows of an image in a sound pass: as a "convolution" does, or pixel by
        pixel, by the "boxes" under a window, or by what `Backward.constant` returns, a tuple ("constants"). None where
        it cannot.

    An argument of the interval rule that is annotated with a Literal takes these values alone.
    """

    name: str
    interval: Callable[..., Interval]
    functions: tuple[Callable[..., Any], ...] = ()
    modules: dict[type[nn.Module], Callable[[Any], dict[str, Any]]] = field(default_factory=dict)
    backward: Rule | None = None
    needs_tighter_box: Callable[..., Tensor] | None = None
    refine: Callable[..., Interval] | None = None
    preactivation: Callable[..., Tensor] | None = None
    points: Callable[..., Tensor] | None = None
    row_bounds: Callable[..., Tensor | None] | None = None
    bounded: Literal["first", "one", "any", "list"] = "first"
    affine: Literal["sums", "single", "view"] | None = None
    windows: Literal["convolution", "boxes", "constants"] | None = None

    @property
    def is_pointwise(self) -> bool:
        """Whether each element of the result is made of one element of each argument, broadcast."""
        return self.windows in ("boxes", "constants")


def options(*attributes: str) -> Callable[[Any], dict[str, Any]]:
    """Return a function that reads arguments from a module's attributes of the same names."""
    return lambda module: {name: getattr(module, name) for name in attributes}
