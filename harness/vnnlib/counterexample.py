"""Counterexamples: a point of exact decimals, confirmed in exact arithmetic and by onnxruntime in float32."""

import copy
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from cerdeq.bounds import Context, Interval, propagate, trace
from cerdeq.boxes import outward_ends
from harness.common.properties import Case, InputBox
from harness.common.rounding import round_up


def decimals_inside(point: Tensor, box: InputBox) -> list[str]:
    """Return decimals inside the exact box, one near each element of the point [1, ...].

    If a nearby float32 lies in the box, its shortest decimal is used. Raises ValueError if the box has an element
    without any decimal, such as 1/3.
    """
    elements = zip(point.flatten().tolist(), box.lower, box.upper, strict=True)
    return [next(text for text in _candidates(*ends) if ends[1] <= Fraction(text) <= ends[2]) for ends in elements]


def _candidates(value: float, low: Fraction, high: Fraction) -> Iterator[str]:
    nearest = np.float32(float(min(max(Fraction(value), low), high)))
    for number in (nearest, np.nextafter(nearest, np.float32(-np.inf)), np.nextafter(nearest, np.float32(np.inf))):
        yield str(number)
    yield decimal_between(low, high)


def decimal_between(low: Fraction, high: Fraction) -> str:
    """Return the decimal of the fewest digits from low to high. Raises ValueError if none has up to 1000 digits."""
    for digits in range(1001):
        scaled = -(-low * 10**digits // 1)
        if scaled <= high * 10**digits:
            text = str(abs(scaled)).rjust(digits + 1, "0")
            split = len(text) - digits
            return f"{'-' if scaled < 0 else ''}{text[:split]}.{text[split:] or '0'}"
    raise ValueError(f"there is no decimal from {low} to {high}")


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
