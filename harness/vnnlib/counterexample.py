"""Counterexamples: a point of exact decimals, confirmed in exact arithmetic and by onnxruntime in float32."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from cerdeq.bounds import Context, Interval, propagate, trace
from cerdeq.boxes import outward_ends
from harness.common.rounding import round_up
from harness.vnnlib.properties import Case, InputBox

_NEAR = Fraction(1, 10**6)  # an end of the box, relative to 1 or the end


class NoDecimalError(Exception):
    """An interval holds no decimal; the message says which."""


def decimals_inside(point: Tensor, box: InputBox) -> Iterator[list[str]]:
    """Yield lists of decimals inside the exact box, one near each element of the point [1, ...].

    First the shortest decimals of float32 numbers; then those at the ends of the box where an element is almost there;
    then, elsewhere, all digits of float32 numbers: of 0.1 these are 0.100000001490116... Raises NoDecimalError if the
    box has an element without any decimal, such as 1/3.
    """
    elements, lists = [*zip(point.flatten().tolist(), box.lower, box.upper, strict=True)], list[list[str]]()
    for to_decimal in (_shortest, partial(_at_end, otherwise=_shortest), partial(_at_end, otherwise=_all_digits)):
        texts = [to_decimal(*element) for element in elements]
        if texts not in lists:
            yield texts
            lists.append(texts)


def _shortest(value: float, low: Fraction, high: Fraction) -> str:
    nearest = np.float32(float(min(max(Fraction(value), low), high)))
    numbers = nearest, np.nextafter(nearest, np.float32(-np.inf)), np.nextafter(nearest, np.float32(np.inf))
    inside = (text for text in map(str, numbers) if low <= Fraction(text) <= high)
    return next(inside, None) or decimal_between(low, high)


def _at_end(value: float, low: Fraction, high: Fraction, otherwise: Callable[[float, Fraction, Fraction], str]) -> str:
    end = low if abs(Fraction(value) - low) <= abs(Fraction(value) - high) else high
    if abs(Fraction(value) - end) <= _NEAR * max(Fraction(1), abs(end)):
        with suppress(NoDecimalError):  # an end such as 1/3
            return decimal_between(end, end)
    return otherwise(value, low, high)


def _all_digits(value: float, low: Fraction, high: Fraction) -> str:
    nearest = float(np.float32(value))
    return format(Decimal(nearest), "f") if low <= nearest <= high else _shortest(value, low, high)


def decimal_between(low: Fraction, high: Fraction) -> str:
    """Return the decimal of the fewest digits from low to high. Raises NoDecimalError if none has up to 1000 digits."""
    for digits in range(1001):
        scaled = -(-low * 10**digits // 1)
        if scaled <= high * 10**digits:
            text = str(abs(scaled)).rjust(digits + 1, "0")
            split = len(text) - digits
            return f"{'-' if scaled < 0 else ''}{text[:split]}.{text[split:] or '0'}"
    raise NoDecimalError(f"there is no decimal from {low} to {high}")


def exact_outputs(network: nn.Module, inputs: Sequence[str], shape: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """Return lower and upper bounds of each of the network's outputs at these decimals, in real arithmetic."""
    exact = [Fraction(text) for text in inputs]
    center = [float(number) for number in exact]
    radius = [round_up(abs(number - Fraction(c)), np.float64) for number, c in zip(exact, center, strict=True)]
    point = Interval(*(torch.tensor(part, dtype=torch.float64).view(1, *shape) for part in (center, radius)))
    with torch.no_grad():
        box = propagate(trace(copy.deepcopy(network).double()), point, Context(sound=True)).box
    lower, upper = (end.flatten().tolist() for end in outward_ends(box))
    return lower, upper


def why_not_confirmed(
    cases: Sequence[Case], exact: tuple[Sequence[float | Fraction], ...], float32: Sequence[float]
) -> str:  # fmt: skip
    """Return why a point of the cases' box is not a counterexample; empty if it is.

    It is one if all constraints of a case hold in exact arithmetic and for the outputs in float32. exact: bounds of its
    outputs in exact arithmetic. float32: its outputs by onnxruntime.
    """
    holding = [case for case in cases if case.holds(*exact)]
    if not holding:
        return "the counterexample was rounded to decimals in the box; no case is proved to hold there"
    if not any(case.holds(float32, float32) for case in holding):
        return "the counterexample holds in real arithmetic but not for onnxruntime's float32 outputs"
    return ""
