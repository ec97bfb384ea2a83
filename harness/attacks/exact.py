"""Outputs of a network at one point in exact rational arithmetic, for constraints that hold with equality.

`harness.verify` and `harness.recheck` both use it: a result "sat" with equality rests on this file alone.
"""

import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq.bounds import Step, trace
from cerdeq.deadline import check as check_deadline
from cerdeq.tracing.program import resolved

Array = np.ndarray

_MOST_PRODUCTS = 10**6  # of one layer; they take about a second
_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.truediv, operator.neg}
_MOVES = {"flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "getitem"}


class NoExactRuleError(Exception):
    """There is no exact rule for a layer, or it has too many products."""


def exact_outputs_at(model: nn.Module, inputs: Sequence[Fraction], shape: tuple[int, ...]) -> list[Fraction]:
    """Return the outputs of a model at one input of this shape.

    Raises NoExactRuleError for anything but fully connected layers, convolutions, ReLUs, sums of values, arithmetic
    with stored constants, and moved values, and for layers with too many products; DeadlineError.
    """
    program, values = trace(model), list[Any]([np.array(inputs, dtype=object).reshape(1, *shape)])
    for step in program.steps:
        check_deadline()
        values.append(_result(step, values))
    return list(values[program.output].ravel())


def _result(step: Step, values: list[Any]) -> Any:
    """Return the exact numbers of a step; of a stored constant, the constant."""
    target, arguments = step.target, [resolved(argument, values) for argument in step.args]
    if step.record is None and not step.args and not step.kwargs:
        return target()
    if step.record is None or (step.kwargs and target in _ARITHMETIC):
        raise NoExactRuleError  # constants computed from others depend on the precision
    if target in _ARITHMETIC:
        return target(*map(_fractions, arguments))
    x = values[step.sources[0]]
    if type(target) is nn.Linear:
        return _product(x, target.weight, target.bias)
    if type(target) is nn.ReLU or target in (F.relu, torch.relu):
        return np.asarray(x * (x > 0))
    if type(target) is nn.Conv2d and (target.groups, target.padding_mode) == (1, "zeros"):
        return _convolution(x, target)
    if type(target) is nn.Identity:
        return x
    if type(target) is nn.Flatten or getattr(target, "__name__", "") in _MOVES:
        places = torch.arange(x.size, dtype=torch.float64).reshape(x.shape)
        return x.ravel()[target(places, *arguments[1:], **step.kwargs).long().numpy()]
    raise NoExactRuleError


def _product(x: Array, weight: Tensor, bias: Tensor | None) -> Array:
    """Return x [..., n] times the transposed weight [m, n], plus the bias."""
    if x.size * len(weight) > _MOST_PRODUCTS:
        raise NoExactRuleError
    result = x @ _fractions(weight).T
    return result if bias is None else result + _fractions(bias)


def _convolution(x: Array, layer: nn.Conv2d) -> Array:
    """Return the convolution of x [1, C, H, W]: the products of its windows. Place 0 is the padding."""
    if isinstance(layer.padding, str):
        raise NoExactRuleError
    places = torch.arange(1, x.size + 1, dtype=torch.float64).reshape(x.shape)
    windows = F.unfold(places, layer.kernel_size, layer.dilation, layer.padding, layer.stride)[0].T.long().numpy()
    padded = np.concatenate([[Fraction(0)], x.ravel()])
    result = _product(padded[windows], layer.weight.flatten(1), layer.bias).T
    return result.reshape(layer(torch.zeros(x.shape).to(layer.weight)).shape)


def _fractions(numbers: Array | Tensor | float) -> Array:
    """Return numbers as fractions: a tensor's, a Python number's, or those of an array that has them already."""
    if isinstance(numbers, np.ndarray):
        return numbers
    if not isinstance(numbers, Tensor):
        return np.array(Fraction(numbers), dtype=object)
    fractions = [Fraction(number) for number in numbers.detach().double().flatten().tolist()]
    return np.array(fractions, dtype=object).reshape(tuple(numbers.shape))
