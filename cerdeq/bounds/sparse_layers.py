"""Linear layers with few weights in each row, as gathered products: lattices of minima and maxima are made of them.

`with_sparse_layers` replaces them in a program. Numbers differ from those of the dense layers by rounding alone.
"""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from cerdeq.operators.backward import Backward, Pulled, magnitude, rounded_constant, rounding_costs
from cerdeq.operators.interval import Context, Interval, center_and_clean, widen_sum, widen_terms
from cerdeq.operators.linear import linear_interval
from cerdeq.operators.record import Operator
from cerdeq.tracing.program import Program, Step

_FEWEST_WEIGHTS, _MOST_IN_ROW = 2**12, 8  # of smaller or denser layers the dense product is as fast


@dataclass(frozen=True)
class SparseWeights:
    """A linear layer's weight [N, M] with at most m numbers in each row that are not 0, and its bias.

    columns, numbers: [N, m], rows with fewer numbers have zeros. bias: [N].
    """

    columns: Tensor
    numbers: Tensor
    bias: Tensor
    inputs: int

    def product(self, x: Tensor) -> Tensor:
        """Return W x over the last dimension."""
        return sum_of_products(x, self.columns, self.numbers)

    def magnitudes(self, x: Tensor) -> Tensor:
        """Return |W| x over the last dimension."""
        return sum_of_products(x, self.columns, self.numbers.abs())

    def transposed(self, a: Tensor) -> Tensor:
        """Return A W over the last dimension."""
        result = a.new_zeros(*a.shape[:-1], self.inputs)
        for k in range(self.columns.shape[1]):
            result = result.index_add(-1, self.columns[:, k], a * self.numbers[:, k])
        return result


def with_sparse_layers(program: Program) -> Program:
    """Return the program with large linear layers of few weights in each row as `sparse_linear`."""
    return replace(program, steps=tuple(map(_sparse_step, program.steps)))


def _sparse_step(step: Step) -> Step:
    is_large = isinstance(step.target, nn.Linear) and step.target.weight.numel() >= _FEWEST_WEIGHTS
    weights = sparse_weights(step) if is_large else None
    return step if weights is None else replace(step, record=_RECORD, target=sparse_linear, args=(*step.args, weights))


def sparse_weights(step: Step) -> SparseWeights | None:
    """Return the weights of a linear layer with few of them in each row, None for any other step."""
    if step.target is sparse_linear:
        return step.args[-1]
    is_linear = step.record is not None and step.record.interval is linear_interval
    if not is_linear or not isinstance(step.target, nn.Linear):
        return None
    layer = step.target
    weight = layer.weight.detach()
    most = int((weight != 0).sum(1).max())
    if most > _MOST_IN_ROW:
        return None
    most = max(1, most)  # without a column, outputs would not depend on inputs, nor have a gradient
    columns = (weight != 0).byte().topk(most, dim=1).indices
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    return SparseWeights(columns, weight.gather(1, columns), bias, weight.shape[1])


def sparse_linear(x: Tensor, weights: SparseWeights) -> Tensor:
    """Return W x + b over the last dimension."""
    return weights.product(x) + weights.bias


def sum_of_products(x: Tensor, columns: Tensor, numbers: Tensor) -> Tensor:
    """Return sum_k numbers[:, k] x[..., columns[:, k]]."""
    result = x.new_zeros(*x.shape[:-1], len(columns))
    for k in range(columns.shape[1]):
        result = result + x.index_select(-1, columns[:, k]) * numbers[:, k]
    return result


def _interval(ctx: Context, x: Interval, weights: SparseWeights) -> Interval:
    center, clean = center_and_clean(x, lambda value: sparse_linear(value, weights))
    terms = weights.columns.shape[1] + 1
    radius = weights.magnitudes(widen_terms(ctx, x.center, x.radius, terms))
    return Interval(center, widen_sum(ctx, radius, terms, weights.bias), clean)


def _backward(ctx: Backward, coefficients: Tensor, x: Interval, weights: SparseWeights) -> Pulled:
    pulled, bias = (weights.transposed(coefficients),), weights.bias
    if not ctx.sound:
        return Pulled(pulled, (coefficients * bias).flatten(2).sum(2))

    def costs() -> tuple[Tensor, Tensor]:
        return rounding_costs(weights.magnitudes(magnitude(x)) + bias.abs(), len(bias), weights.inputs)

    each, rest = ctx.constant("costs", costs)
    return Pulled(pulled, rounded_constant(ctx, coefficients, (each, rest), bias.expand_as(each)))


_RECORD = Operator("sparse linear", _interval, (sparse_linear,), {}, _backward, affine="sums")
