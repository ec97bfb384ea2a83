"""A property of a network as a list of cases: a box of inputs and linear constraints on outputs, in exact numbers.

A property describes counterexamples. It is satisfied by an input that satisfies one of its cases: the input lies in the
case's box, and its outputs satisfy all constraints of the case.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import isfinite, lcm

LARGEST = 10**30  # of the ends of inputs and of numbers of scaled constraints, which are at least 1 / LARGEST
NUMBER = re.compile(r"(?=.{1,4000}$)[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)  # Python reads 4,300 digits
MOST_TOGETHER = 1000  # constraints of the cases that are decided together


@dataclass(frozen=True)
class Constraint:
    """coefficients . outputs <= bound. coefficients: of some outputs, by their number."""

    coefficients: dict[int, Fraction]
    bound: Fraction

    @cached_property
    def scale(self) -> Fraction:
        """A positive factor for the whole constraint.

        With it, float64 holds the coefficients exactly if they have few digits; else the largest number of the
        constraint becomes about 1. Solver and checker both use it: any positive factor is sound.
        """
        values = self.coefficients.values()
        whole = lcm(*(value.denominator for value in values))
        whole = 1 if whole & (whole - 1) == 0 else whole  # powers of 2 are exact as they are
        if abs(self.bound) * whole <= LARGEST and all(is_exact_in_float64(value * whole) for value in values):
            return Fraction(whole)
        largest = max(abs(self.bound), *map(abs, values))
        return Fraction(2) ** (largest.denominator.bit_length() - largest.numerator.bit_length())

    @property
    def is_order(self) -> bool:
        """True if it says that one output is at most another."""
        return len(self.coefficients) == 2 and not self.bound and not sum(self.coefficients.values())


def is_exact_in_float64(number: Fraction) -> bool:
    """Return whether float64 holds a number that is not 0, with room for products."""
    return Fraction(1, LARGEST) <= abs(number) <= LARGEST and Fraction(float(number)) == number


@dataclass(frozen=True)
class InputBox:
    """The inputs from `lower` to `upper`, element by element."""

    lower: tuple[Fraction, ...]
    upper: tuple[Fraction, ...]

    def contains(self, point: Sequence[Fraction]) -> bool:
        """Return whether a point lies in the box."""
        return all(low <= x <= high for low, x, high in zip(self.lower, point, self.upper, strict=True))


@dataclass(frozen=True)
class Case:
    """A description of counterexamples: their inputs lie in the box, all constraints hold for their outputs."""

    box: InputBox
    constraints: tuple[Constraint, ...]

    def holds(self, lower: Sequence[float | Fraction], upper: Sequence[float | Fraction]) -> bool:
        """Return whether all constraints hold for all outputs between `lower` and `upper`, compared exactly."""
        if not all(map(isfinite, (*lower, *upper))):
            return False
        return all(
            sum(value * Fraction((upper if value > 0 else lower)[n]) for n, value in constraint.coefficients.items())
            <= constraint.bound
            for constraint in self.constraints
        )


@dataclass(frozen=True)
class Declaration:
    """A variable of a file of version 2.0. kind: its type, "float32" or "real"."""

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Property:
    """A property of a network. Cases with equal boxes hold the same InputBox.

    inputs, outputs: how many.
    declared: the input and the output of a file of version 2.0; None in version 1.0.
    """

    inputs: int
    outputs: int
    cases: tuple[Case, ...]
    declared: tuple[Declaration, Declaration] | None = field(default=None, compare=False)

    @property
    def is_order(self) -> bool:
        """True if it asks only for the order of outputs, which a softmax keeps."""
        return all(constraint.is_order for case in self.cases for constraint in case.constraints)

    @property
    def groups(self) -> list[list[Case]]:
        """The cases, in the order of the file: those of one box together, up to 1,000 constraints in a group."""
        groups, counts, last = list[list[Case]](), list[int](), dict[int, int]()
        for case in self.cases:
            group, count = last.get(id(case.box)), len(case.constraints)
            if group is None or counts[group] + count > MOST_TOGETHER:
                group = last[id(case.box)] = len(groups)
                groups.append([])
                counts.append(0)
            groups[group].append(case)
            counts[group] += count
        return groups


@dataclass(frozen=True)
class Counterexample:
    """inputs: exact decimals. outputs: of onnxruntime at these inputs, rounded to float32. declared: as in Property."""

    inputs: list[str]
    outputs: list[str]
    declared: tuple[Declaration, Declaration] | None = None

    def to_text(self) -> str:
        """Return the counterexample as the competition writes it for properties of this version.

        Version 1.0: `(X_0 value)` and so on, in brackets. Version 2.0: a line `name type [sizes]`, then a value a line.
        """
        values = self.inputs, self.outputs
        if self.declared is None:
            lines = [f"({kind}_{n} {v})" for kind, vs in zip("XY", values, strict=True) for n, v in enumerate(vs)]
            return "(" + "\n".join(lines) + ")"
        headers = [f"{each.name} {each.kind} [{','.join(map(str, each.shape))}]" for each in self.declared]
        return "\n".join(line for header, vs in zip(headers, values, strict=True) for line in (header, *vs))
