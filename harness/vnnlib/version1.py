"""The cases of a property from the expressions of a VNN-LIB file, in exact numbers."""

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import chain, product
from math import prod
from typing import NamedTuple

from cerdeq.deadline import check as check_deadline
from harness.common.errors import InputError, shorten
from harness.vnnlib.brackets import Expression, to_text
from harness.vnnlib.properties import LARGEST, NUMBER, Case, Constraint, InputBox, Property

MOST_CASES = 20_000
MOST_CONSTRAINTS, MOST_OF_A_CASE = 1_000_000, 4000  # constraints on outputs
MOST_BOUNDS = 20_000_000  # of inputs, of all cases: 160 MB of references
_MOST_BITS = 2**14  # of a number that products make: about 4,900 digits
_VARIABLE = re.compile(r"([XY])_(0|[1-9]\d{0,8})", re.ASCII)

Variable = tuple[str, int]  # such as ("X", 0)
Form = dict[Variable, Fraction]  # a linear term: coefficients by variable, and its constant under _CONSTANT
_CONSTANT: Variable = ("", 0)


class _Bound(NamedTuple):
    """An upper or lower bound of one input."""

    number: int
    end: Fraction
    is_upper: bool


class _Conjunction(NamedTuple):
    """Bounds of inputs and constraints on outputs that hold together."""

    bounds: tuple[_Bound, ...] = ()
    constraints: tuple[Constraint, ...] = ()


_Disjunction = list[_Conjunction]


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
    shared, choices, variables = list[_Conjunction](), list[_Disjunction](), {_CONSTANT, *declared}
    for assertion in assertions:
        part = _read_assertion(assertion, variables)
        if len(part) == 1:
            shared += part
        else:
            choices.append(part)
            _refuse_large(*_size_of_product(choices), "the property")
    bounds, constraints = _join(shared)
    _refuse_large(*_size_of_product([[_Conjunction((), constraints)], *choices]), "the property")
    return Property(inputs, outputs, tuple(_make_cases(bounds, constraints, choices, inputs)))


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


def _read_assertion(expression: Expression, variables: set[Variable]) -> _Disjunction:
    """Return an assertion as a disjunction of conjunctions. variables: the declared variables, and _CONSTANT."""
    match expression:
        case ["or", _, *_]:
            choices, sizes = _Disjunction(), (0, 0, 0)
            for each in expression[1:]:
                part = _read_assertion(each, variables)
                choices += part
                sizes = tuple(map(sum, zip(sizes, _size_of_product([part]), strict=True)))  # type: ignore[assignment]
                _refuse_large(*sizes, expression)
            return choices
        case ["and", _, *_]:
            parts = list[_Disjunction]()
            for each in expression[1:]:
                parts.append(_read_assertion(each, variables))
                if len(parts[-1]) > 1:
                    _refuse_large(*_size_of_product(parts), expression)
            _refuse_large(*_size_of_product(parts), expression)
            return [_join(choice) for choice in product(*parts)]
        case ["<=", left, right]:
            return [_atom(left, right, variables, expression)]
        case [">=", left, right]:
            return [_atom(right, left, variables, expression)]
    raise InputError(f"found {to_text(expression)}, allowed: (and ...), (or ...), (<= a b), (>= a b)")


def _join(parts: Iterable[_Conjunction]) -> _Conjunction:
    bounds, constraints = zip(*parts, strict=True) if (parts := list(parts)) else ((), ())
    return _Conjunction(tuple(chain(*bounds)), tuple(chain(*constraints)))


def _size_of_product(parts: list[_Disjunction]) -> tuple[int, int, int]:
    """Return how many cases the product of the parts has, and constraints and bounds in all; it is not expanded."""
    cases = prod(map(len, parts))
    constraints = sum(cases // len(part) * sum(len(each.constraints) for each in part) for part in parts)
    return cases, constraints, sum(cases // len(part) * sum(len(each.bounds) for each in part) for part in parts)


def _refuse_large(cases: int, constraints: int, bounds: int, what: Expression) -> None:
    """Raise InputError for too many cases, or constraints or bounds of all cases."""
    if cases > MOST_CASES:
        raise InputError(f"{to_text(what)} has {cases} cases, allowed: up to {MOST_CASES}")
    for count, most, name in ((constraints, MOST_CONSTRAINTS, "constraints"), (bounds, MOST_BOUNDS, "bounds")):
        if count > most:
            raise InputError(f"{to_text(what)} has {count:,} {name} in {cases} cases, allowed: up to {most:,} in all")


def _atom(left: Expression, right: Expression, variables: set[Variable], expression: Expression) -> _Conjunction:
    """Return left <= right as a bound or constraint. Raises InputError if it is not on one input, or on outputs."""
    difference = _sum((1, [_linear(left, variables, expression)]), (-1, [_linear(right, variables, expression)]))
    bound = -difference.pop(_CONSTANT, Fraction(0))
    kinds = {kind for kind, _ in difference}
    if len(kinds) != 1:
        found = "inputs and outputs" if kinds else "no variable"
        raise InputError(f"found {found} in {to_text(expression)}, allowed: a constraint on inputs or on outputs")
    if kinds == {"Y"}:
        coefficients = {number: value for (_, number), value in difference.items()}
        return _Conjunction(constraints=(Constraint(coefficients, bound),))
    if len(difference) > 1:
        allowed = "bounds of single inputs (the inputs of a case are a box)"
        raise InputError(f"found {to_text(expression)}, allowed: {allowed}")
    (((_, number), factor),) = difference.items()
    end = bound if factor == 1 else bound / factor
    if not -LARGEST <= end <= LARGEST:
        raise InputError(f"found {to_text(expression)}, allowed: bounds of inputs up to 1e30")
    return _Conjunction(bounds=(_Bound(number, end, factor > 0),))


def _linear(term: Expression, variables: set[Variable], expression: Expression) -> Form:
    """Return a linear term."""
    check_deadline()
    if isinstance(term, str):
        form = _symbol(term)
        if not form or not form.keys() <= variables:
            found = f"{shorten(term)} in {to_text(expression)}"
            raise InputError(f"found {found}, allowed: numbers and declared variables")
        return form
    match term:
        case ["+", _, *_]:
            return _sum((1, (_linear(each, variables, expression) for each in term[1:])))
        case ["-", _, *_]:
            first, *others = (_linear(each, variables, expression) for each in term[1:])
            return _sum((1, [first]), (-1, others)) if others else _sum((-1, [first]))
        case ["*", left, right]:
            parts = [_linear(left, variables, expression), _linear(right, variables, expression)]
            for factor, other in (parts, parts[::-1]):
                if factor.keys() <= {_CONSTANT}:
                    return _multiply(factor.get(_CONSTANT, Fraction(0)), other, expression)
    found = f"{to_text(term)} in {to_text(expression)}"
    raise InputError(f"found {found}, allowed: linear terms of +, - and *")


@lru_cache(maxsize=2**16)  # boxes of many cases repeat their numbers
def _symbol(text: str) -> Form:
    """Return a number or a variable as a linear term, which nobody may change; an empty one for another text."""
    if NUMBER.fullmatch(text):
        return {_CONSTANT: Fraction(text)}
    variable = _variable(text)
    return {variable: Fraction(1)} if variable else {}


def _multiply(factor: Fraction, form: Form, expression: Expression) -> Form:
    most = max(map(_bits, form.values()), default=0)
    if _bits(factor) + most > _MOST_BITS:
        raise InputError(f"found a product with too many digits in {to_text(expression)}, allowed: up to 4,900")
    return _sum((factor, [form]))


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _sum(*terms: tuple[int | Fraction, Iterable[Form]]) -> Form:
    """Return the sum of linear terms, each times its factor, without zeros."""
    total: Form = {}
    for factor, forms in terms:
        for variable, value in chain.from_iterable(form.items() for form in forms):
            product = value if factor == 1 else factor * value
            total[variable] = total[variable] + product if variable in total else product
    return {variable: value for variable, value in total.items() if value}


def _make_cases(
    bounds: Iterable[_Bound], constraints: tuple[Constraint, ...], choices: list[_Disjunction], inputs: int
) -> list[Case]:
    """Return the cases whose boxes are not empty. bounds, constraints: of all of them."""
    common = _narrow([None] * inputs, [None] * inputs, bounds)
    boxes, common_box = dict[int, list[InputBox]](), None
    cases, first_reason = list[Case](), ""
    for choice in product(*choices):
        check_deadline()
        own_bounds, own = _join(choice)
        if (box := None if own_bounds else common_box) is None:
            low, high = _narrow(*common, own_bounds)
            if reason := next(_reasons_of_emptiness(low, high), ""):
                first_reason = first_reason or reason
                continue
            box = _find_equal(InputBox(tuple(low), tuple(high)), boxes)  # type: ignore[arg-type]
            common_box = common_box if own_bounds else box
        cases.append(Case(box, (*constraints, *own)))
        if len(cases[-1].constraints) > MOST_OF_A_CASE:
            found = f"a case with {len(cases[-1].constraints)} constraints on outputs"
            raise InputError(f"found {found}, allowed: up to {MOST_OF_A_CASE}")
    if not cases:
        raise InputError(f"the box of inputs is empty: {first_reason}")
    return cases


def _find_equal(box: InputBox, boxes: dict[int, list[InputBox]]) -> InputBox:
    """Return the first box that is equal. boxes: those before by a hash of their ends, to which a new one is added."""
    key = hash(tuple(end.as_integer_ratio() for end in (*box.lower, *box.upper)))  # a fraction's own hash is slow
    same = boxes.setdefault(key, [])
    equal = next((each for each in same if each == box), box)
    if equal is box:
        same.append(box)
    return equal


def _narrow(
    low: list[Fraction | None], high: list[Fraction | None], bounds: Iterable[_Bound]
) -> tuple[list[Fraction | None], list[Fraction | None]]:
    """Return the lowest and highest inputs within further bounds."""
    low, high = list(low), list(high)
    for number, end, is_upper in bounds:
        ends, better = (high, min) if is_upper else (low, max)
        before = ends[number]
        ends[number] = end if before is None else better(before, end)
    return low, high


def _reasons_of_emptiness(low: Iterable[Fraction | None], high: Iterable[Fraction | None]) -> Iterator[str]:
    """Yield why there is no input within these bounds. Raises InputError for an input without bounds."""
    for number, (start, stop) in enumerate(zip(low, high, strict=True)):
        if start is None or stop is None:
            side = "lower" if start is None else "upper"
            raise InputError(f"found no {side} bound of X_{number}, allowed: bounds of every input")
        if start > stop:
            yield f"X_{number} is at least {float(start)} and at most {float(stop)}"
