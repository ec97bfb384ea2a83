"""Coefficients, bounds and ends of many digits: decided as exact fractions say, also where the last digit decides."""

from fractions import Fraction
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from small_properties import declared, proved_by, run, solve_small, tensors_of, with_weights
from torch import nn

from harness.checker.bounds.boxes import Box as CheckerBox
from harness.checker.bounds.network import read_steps
from harness.checker.properties import confirm_sat
from harness.checker.violations import _row, violations_network
from harness.vnnlib.brackets import parse
from harness.vnnlib.properties import Case, Constraint, InputBox
from harness.vnnlib.query import query_of_boxes, region_of, with_flat_outputs, with_violations
from harness.vnnlib.version1 import property_of

LARGEST = 4.0  # of the outputs


def decimal(random, digits):
    """Return a random positive decimal of so many digits, somewhere between 1e-300 and 1e300 if it is long."""
    number = "".join(map(str, random.integers(0, 10, digits)))
    power = 0 if digits < 30 else int(random.integers(-300, 300))
    return f"0.{number}1e{power}"


def random_cases(random, digits):
    cases = []
    for _ in range(2):
        signs = random.choice([-1, 1], (2, 3))
        rows = [{n: int(sign) * Fraction(decimal(random, digits)) for n, sign in enumerate(row)} for row in signs]
        outputs = [Fraction(float(y)) for y in random.uniform(-LARGEST, LARGEST, 3)]
        ends = [sum(value * y for value, y in zip(row.values(), outputs, strict=True)) for row in rows]
        shares = [Fraction(int(share), 10) for share in random.integers(9, 12, 2)]
        constraints = [Constraint(row, end * share) for row, end, share in zip(rows, ends, shares, strict=True)]
        cases.append(Case(InputBox((Fraction(-4),) * 3, (Fraction(4),) * 3), tuple(constraints)))
    return cases


@pytest.mark.parametrize("digits", [2, 16, 17, 30, 300])
def test_a_positive_value_is_an_exact_violation(digits):
    """Outputs are 0, random, or almost meet a constraint."""
    for seed in range(10):
        random = np.random.default_rng(seed)
        cases = random_cases(random, digits)
        region = region_of(cases[0].box, (3,))
        outputs = np.concatenate([np.zeros((1, 3)), random.uniform(-LARGEST, LARGEST, (20, 3))])
        for constraint in (c for case in cases for c in case.constraints):
            y = random.uniform(-LARGEST, LARGEST, 3)
            others = sum(value * Fraction(float(y[n])) for n, value in constraint.coefficients.items() if n)
            nearest = (constraint.bound - others) / constraint.coefficients[0]
            if abs(nearest) <= LARGEST:
                ends = np.nextafter(float(nearest), [-9, float(nearest), 9])
                outputs = np.concatenate([outputs, [[end, *y[1:]] for end in ends]])
        values = with_violations(nn.Identity(), region, cases, 3)(torch.from_numpy(outputs)).tolist()
        checked = violations_network(
            read_steps(nn.Sequential(nn.Identity()).eval()),
            CheckerBox(np.zeros((1, 3)), np.full((1, 3), 4.0)),
            cases,
            3,
        )
        box = checked.rows(checked.boxes(CheckerBox(outputs, np.zeros(outputs.shape))), np.eye(len(cases))[None])
        model = with_flat_outputs(nn.Identity())
        _, spec, least, numbers = query_of_boxes(model, [cases], (3,), 3)
        for y, row, lows in zip(outputs, values, box.lower, strict=True):
            exact = [Fraction(float(each)) for each in y]
            for number, (case, low) in enumerate(zip(cases, lows, strict=True)):
                violations = [sum(v * exact[n] for n, v in c.coefficients.items()) - c.bound for c in case.constraints]
                assert not (low > 0 and max(violations) <= 0)
                # torch rounds the value itself: an error of that size is no violation's
                assert not (row[number] > 1e-13 and max(violations) <= 0)
                sums = [sum(Fraction(w) * e for w, e in zip(weight, exact, strict=True)) for weight in spec[0].tolist()]
                rows = zip(sums, least[0].tolist(), numbers[0].tolist(), strict=True)
                is_refuted = any(n == number and s > Fraction(b) for s, b, n in rows)
                assert not (is_refuted and max(violations) <= 0)


@pytest.mark.parametrize("digits", [2, 17, 300])
def test_a_constraint_in_floats_is_at_most_the_exact_one_at_any_outputs(digits):
    for seed in range(50):
        random = np.random.default_rng(seed)
        for constraint in (c for case in random_cases(random, digits) for c in case.constraints):
            weight, constant = _row(constraint, 3, lambda: np.full(3, LARGEST))
            for signs in product((-1, 1), repeat=3):
                y = [sign * Fraction(LARGEST) for sign in signs]
                exact = sum(v * y[n] for n, v in constraint.coefficients.items()) - constraint.bound
                value = sum(Fraction(w) * e for w, e in zip(weight.tolist(), y, strict=True)) + Fraction(constant)
                assert value <= constraint.scale * exact


def exact_minimum(weights, coefficients, low):
    """Return the smallest value of coefficients . V relu(W x), all of whose numbers are positive: at the lowest x."""
    first, last = ([[Fraction(float(w)) for w in row] for row in matrix] for matrix in weights)
    hidden = [sum(w * low for w in row) for row in first]
    outputs = [sum(w * h for w, h in zip(row, hidden, strict=True)) for row in last]
    return sum(c * y for c, y in zip(coefficients, outputs, strict=True))


def text_of_decimal(number):
    """Return an exact decimal, which must have up to 2,000 digits."""
    scaled = number * 10**2000
    assert scaled.denominator == 1
    digits = str(scaled.numerator).rjust(2001, "0")
    return f"{digits[:-2000]}.{digits[-2000:]}"


@pytest.mark.parametrize(("digits", "boxes"), [(17, 2), (300, 1)])
def test_a_truth_that_the_last_digit_decides_is_never_denied(digits, boxes):
    random, statuses = np.random.default_rng(digits), set()
    weights = [random.integers(1, 9, shape) / 8 for shape in [(4, 2), (2, 4)]]
    network = with_weights(
        nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), *map(torch.tensor, weights)
    ).float()
    low, coefficients = Fraction("0.1234567890123456789"), [decimal(random, digits).split("e")[0] for _ in range(2)]
    least = exact_minimum(weights, map(Fraction, coefficients), low)
    term = f"(+ (* {coefficients[0]} Y_0) (* {coefficients[1]} Y_1))"
    box = "".join(f"(assert (<= X_{n} 1.0))" for n in range(2))
    ends = [f"(and {' '.join(f'(>= X_{n} {end})' for n in range(2))})" for end in ("0.1234567890123456789", "0.5")]
    for power in (-2, -12, -16, -400):
        for sign in (-1, 0, 1):
            bound = text_of_decimal(least + sign * Fraction(10) ** power)
            text = f"{declared(2, 2)}{box}(assert (or {' '.join(ends[:boxes])}))(assert (<= {term} {bound}))"
            property_ = property_of(parse(text))
            result = solve_small(property_, network)
            statuses.add((result.status, sign))
            if result.status == "sat":
                confirm_sat(property_, network, partial(run, network), result.counterexample_text)
            is_proved = bool(proved_by(network, property_, tensors_of(result)))
            assert is_proved == (result.status == "unsat"), (power, sign)
            assert sign >= 0 if result.status == "sat" else not is_proved or sign < 0, (power, sign)
            if power == -2 or (power >= -12 and sign < 0):  # nearer, float32 outputs may violate the constraint
                assert result.status == ("unsat" if sign < 0 else "sat" if sign > 0 else result.status), (power, sign)
    assert {("sat", 1), ("unsat", -1)} <= statuses


@pytest.mark.parametrize("text", ["(>= Y_0 1e400)", "(<= (* 1e400 Y_0) 0.0)", "(<= (+ Y_0 (* 1e-400 Y_1)) -1e-300)"])
def test_numbers_beyond_those_of_float64_are_decided(text):
    network = with_weights(nn.Sequential(nn.Linear(2, 2)), torch.eye(2))
    box = "".join(f"(assert (>= X_{n} 0.25))(assert (<= X_{n} 1))" for n in range(2))
    for constraint, status in (
        (text, "unsat"),
        (text.replace(">=", "!").replace("<=", ">=").replace("!", "<="), "sat"),
    ):
        property_ = property_of(parse(f"{declared(2, 2)}{box}(assert {constraint})"))
        result = solve_small(property_, network)
        assert result.status == status
        if status == "unsat":
            assert proved_by(network, property_, tensors_of(result))
        else:
            confirm_sat(property_, network, partial(run, network), result.counterexample_text)


def test_rounded_coefficients_of_unbounded_outputs_prove_nothing():
    """The error of a coefficient counts times the outputs, which are up to 1e20."""
    box, coefficient = InputBox((Fraction(-(10**20)),), (Fraction(10**20),)), Fraction("0.12345678901234567891")
    case = Case(box, (Constraint({0: coefficient}, Fraction(0)),))
    violation = with_violations(nn.Identity(), region_of(box, (1,)), [case], 1)
    exact = Fraction(violation.violations.values.bias.item())
    error = abs(coefficient * case.constraints[0].scale - Fraction(violation.violations.values.weight.item()))
    assert error and exact <= -error * 10**20
