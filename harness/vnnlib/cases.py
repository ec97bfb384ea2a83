"""A property as a list of cases: a box of inputs and linear constraints on outputs, in exact numbers.

A property describes counterexamples. It is satisfied by an input that satisfies one of its cases: the input lies in the
case's box, and its outputs satisfy all constraints of the case.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import isfinite, prod
from typing import NamedTuple

from harness.common.errors import InputError, shorten
from harness.vnnlib.expressions import Expression, to_text

MOST_CASES = 20_000
MOST_CONSTRAINTS = 50_000_000  # of all cases: 400 MB of references
LARGEST = 10**30  # a number of a property
NUMBER = re.compile(r"(?=.{1,4000}$)[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)  # Python reads 4,300 digits
_VARIABLE = re.compile(r"([XY])_(0|[1-9]\d{0,8})", re.ASCII)

Variable = tuple[str, int]  # such as ("X", 0)
Form = dict[Variable, Fraction]


@dataclass(frozen=True)
class Constraint:
    """coefficients . outputs <= bound. coefficients: of some outputs, by their number."""

    coefficients: dict[int, Fraction]
    bound: Fraction

    @property
    def is_order(self) -> bool:
        """True if it says that one output is at most another."""
        return len(self.coefficients) == 2 and not self.bound and not sum(self.coefficients.values())


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
class Property:
    """A property of a network with so many inputs and outputs. Cases with equal boxes hold the same InputBox.

    shapes: of the input and the output, as a file of version 2.0 declares them; None in version 1.0.
    """

    inputs: int
    outputs: int
    cases: tuple[Case, ...]
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = field(default=None, compare=False)

    @property
    def is_order(self) -> bool:
        """True if it asks only for the order of outputs, which a softmax keeps."""
        return all(constraint.is_order for case in self.cases for constraint in case.constraints)

    @property
    def groups(self) -> list[list[Case]]:
        """The cases, those of one box together, in the order of the file."""
        groups = dict[int, list[Case]]()
        for case in self.cases:
            groups.setdefault(id(case.box), []).append(case)
        return list(groups.values())


class _Atom(NamedTuple):
    """The constraint form <= bound. Its variables are all inputs or all outputs.

    expression: in the file, for messages.
    """

    form: Form
    bound: Fraction
    expression: Expression

    @property
    def is_of_inputs(self) -> bool:
        return next(iter(self.form))[0] == "X"


def property_of(expressions: Iterable[Expression]) -> Property:
    """Return the property of the expressions of a file.

    Raises InputError for anything but declarations of X_i and Y_i and assertions of and, or, <= and >= of linear
    terms; for constraints on inputs that are not bounds of one input, for inputs without bounds, and if the box of
    every case is empty.
    """
    declared, assertions = dict[Variable, None](), list[Expression]()
    for expression in expressions:
        match expression:
            case ["declare-const", str() as name, "Real"]:
                declared[_declared(name, declared)] = None
            case ["assert", assertion]:
                assertions.append(assertion)
            case _:
                found = to_text(expression)
                raise InputError(f"found {found}, allowed: (declare-const X_0 Real), (assert ...)")
    inputs, outputs = (_count(kind, declared) for kind in "XY")
    shared, choices, variables = list[_Atom](), list[list[list[_Atom]]](), {_CONSTANT, *declared}
    for assertion in assertions:
        conjunctions = _conjunctions(assertion, variables)
        if len(conjunctions) == 1:
            shared += conjunctions[0]
        else:
            choices.append(conjunctions)
            _refuse_many(choices, "the property")
    return Property(inputs, outputs, tuple(_make_cases(shared, choices, inputs)))


def _declared(name: str, declared: dict[Variable, None]) -> Variable:
    variable = _variable(name)
    if variable is None or variable in declared:
        raise InputError(f"found a declaration of {shorten(name)}, allowed: each of X_0, X_1, ..., Y_0, Y_1, ... once")
    return variable


def _variable(name: str) -> Variable | None:
    match = _VARIABLE.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def _count(kind: str, declared: dict[Variable, None]) -> int:
    """Return how many inputs or outputs are declared. Raises InputError if there is none or one is left out."""
    numbers = [number for name, number in declared if name == kind]
    if not numbers:
        raise InputError(f"found no declaration of {kind}_0")
    if len(numbers) != max(numbers) + 1:
        raise InputError(
            f"found {len(numbers)} declarations of {kind}_i up to {kind}_{max(numbers)}, allowed: all of them"
        )
    return len(numbers)


def _conjunctions(expression: Expression, variables: set[Variable]) -> list[list[_Atom]]:
    """Return an assertion as a disjunction of conjunctions. variables: the declared variables, and _CONSTANT."""
    match expression:
        case ["or", _, *_]:
            choices = list[list[_Atom]]()
            for each in expression[1:]:
                choices += _conjunctions(each, variables)
                if len(choices) > MOST_CASES:
                    _refuse_many([choices], expression)
            return choices
        case ["and", _, *_]:
            parts = list[list[list[_Atom]]]()
            for each in expression[1:]:
                parts.append(_conjunctions(each, variables))
                if len(parts[-1]) > 1:
                    _refuse_many(parts, expression)
            _refuse_many(parts, expression)
            return [[atom for part in choice for atom in part] for choice in product(*parts)]
        case ["<=", left, right]:
            return [[_atom(left, right, variables, expression)]]
        case [">=", left, right]:
            return [[_atom(right, left, variables, expression)]]
    raise InputError(f"found {to_text(expression)}, allowed: (and ...), (or ...), (<= a b), (>= a b)")


def _refuse_many(parts: list[list[list[_Atom]]], what: Expression) -> None:
    """Raise InputError if the product of the parts, not yet expanded, has too many cases, or constraints in all."""
    cases = prod(map(len, parts))
    if cases > MOST_CASES:
        raise InputError(f"{to_text(what)} has {cases} cases, allowed: up to {MOST_CASES}")
    constraints = sum(cases // len(part) * sum(map(len, part)) for part in parts)
    if cases > 1 and constraints > MOST_CONSTRAINTS:
        found = f"{to_text(what)} has {constraints:,} constraints in {cases} cases"
        raise InputError(f"{found}, allowed: up to {MOST_CONSTRAINTS:,} in all")


def _atom(left: Expression, right: Expression, variables: set[Variable], expression: Expression) -> _Atom:
    """Return the constraint left <= right. Raises InputError if it is not on one input, or on outputs."""
    difference = _difference(_linear(left, variables, expression), _linear(right, variables, expression))
    bound = -difference.pop(_CONSTANT, Fraction(0))
    kinds = {kind for kind, _ in difference}
    if len(kinds) != 1:
        found = "inputs and outputs" if kinds else "no variable"
        raise InputError(f"found {found} in {to_text(expression)}, allowed: a constraint on inputs or on outputs")
    if kinds == {"X"} and len(difference) > 1:
        allowed = "bounds of single inputs (the inputs of a case are a box)"
        raise InputError(f"found {to_text(expression)}, allowed: {allowed}")
    return _Atom(difference, bound, expression)


_CONSTANT: Variable = ("", 0)


def _linear(term: Expression, variables: set[Variable], expression: Expression) -> Form:
    """Return a linear term as coefficients by variable. Its constant is stored under the key _CONSTANT."""
    if isinstance(term, str):
        form = _symbol(term)
        if not form or not form.keys() <= variables:
            found = f"{shorten(term)} in {to_text(expression)}"
            raise InputError(f"found {found}, allowed: numbers and declared variables")
        return form
    match term:
        case ["+", _, *_]:
            return _sum(_linear(each, variables, expression) for each in term[1:])
        case ["-", _, *_]:
            first, *others = (_linear(each, variables, expression) for each in term[1:])
            return _difference(first, _sum(others)) if others else _difference({}, first)
        case ["*", left, right]:
            parts = [_linear(left, variables, expression), _linear(right, variables, expression)]
            for factor, other in (parts, parts[::-1]):
                if factor.keys() <= {_CONSTANT}:
                    number = factor.get(_CONSTANT, Fraction(0))
                    return _sum([{variable: number * value for variable, value in other.items()}])
    found = f"{to_text(term)} in {to_text(expression)}"
    raise InputError(f"found {found}, allowed: linear terms of +, - and *")


@lru_cache(maxsize=2**16)  # boxes of many cases repeat their numbers
def _symbol(text: str) -> Form:
    """Return a number or a variable as a linear term, which nobody may change; an empty one for another text."""
    if NUMBER.fullmatch(text):
        return {_CONSTANT: Fraction(text)}
    variable = _variable(text)
    return {variable: Fraction(1)} if variable else {}


def _sum(forms: Iterable[Form]) -> Form:
    total: Form = {}
    for form in forms:
        for variable, value in form.items():
            total[variable] = total.get(variable, Fraction(0)) + value
    return {variable: value for variable, value in total.items() if value}


def _difference(left: Form, right: Form) -> Form:
    total = dict(left)
    for variable, value in right.items():
        total[variable] = total[variable] - value if variable in total else -value
    return {variable: value for variable, value in total.items() if value}


def _make_cases(shared: list[_Atom], choices: list[list[list[_Atom]]], inputs: int) -> list[Case]:
    """Return the cases whose boxes are not empty."""
    low, high, constraints = _apply_atoms([None] * inputs, [None] * inputs, shared)
    boxes, shared_box = dict[tuple[tuple[int, int], ...], InputBox](), None
    cases, first_reason = list[Case](), ""
    for choice in product(*choices):
        atoms = [atom for part in choice for atom in part]
        has_own_box = any(atom.is_of_inputs for atom in atoms)
        own_low, own_high, own = _apply_atoms(low, high, atoms)
        if (box := None if has_own_box else shared_box) is None:
            if reason := next(_reasons_of_emptiness(own_low, own_high), ""):
                first_reason = first_reason or reason
                continue
            box = InputBox(tuple(own_low), tuple(own_high))  # type: ignore[arg-type]
            ends = tuple(end.as_integer_ratio() for end in (*box.lower, *box.upper))  # a fraction's own hash is slow
            box = boxes.setdefault(ends, box)
            shared_box = shared_box if has_own_box else box
        cases.append(Case(box, (*constraints, *own)))
    if not cases:
        raise InputError(f"the box of inputs is empty: {first_reason}")
    return cases


def _apply_atoms(
    low: list[Fraction | None], high: list[Fraction | None], atoms: list[_Atom]
) -> tuple[list[Fraction | None], list[Fraction | None], list[Constraint]]:
    """Return the bounds of inputs narrowed by the atoms, and the atoms on outputs as constraints."""
    low, high, constraints = list(low), list(high), list[Constraint]()
    for atom in atoms:
        if not atom.is_of_inputs:
            constraints.append(Constraint({number: value for (_, number), value in atom.form.items()}, atom.bound))
            continue
        ((_, number), factor), *_ = atom.form.items()
        end = atom.bound if factor == 1 else atom.bound / factor
        if not -LARGEST <= end <= LARGEST:
            raise InputError(f"found {to_text(atom.expression)}, allowed: bounds of inputs up to 1e30")
        ends, better = (high, min) if factor > 0 else (low, max)
        before = ends[number]
        ends[number] = end if before is None else better(before, end)
    return low, high, constraints


def _reasons_of_emptiness(low: Iterable[Fraction | None], high: Iterable[Fraction | None]) -> Iterator[str]:
    """Yield why there is no input within these bounds. Raises InputError for an input without bounds."""
    for number, (start, stop) in enumerate(zip(low, high, strict=True)):
        if start is None or stop is None:
            side = "lower" if start is None else "upper"
            raise InputError(f"found no {side} bound of X_{number}, allowed: bounds of every input")
        if start > stop:
            yield f"X_{number} is at least {float(start)} and at most {float(stop)}"
