"""Properties of small networks: boxes, decimals, violations, equality, and what is refused."""

import functools
import itertools
from contextlib import nullcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_properties import INPUTS, OUTPUTS, SECONDS, declared, run, text_of, with_weights
from torch import nn

from harness.common.errors import InputError
from harness.common.rounding import round_up
from harness.vnnlib.brackets import parse
from harness.vnnlib.counterexample import NoDecimalError, decimal_between, decimals_inside
from harness.vnnlib.files import check_shapes
from harness.vnnlib.properties import Case, Declaration, InputBox, Property
from harness.vnnlib.query import region_of
from harness.vnnlib.solve import solve
from harness.vnnlib.version1 import property_of

decimals = st.decimals(-10, 10, places=9).map(Fraction)


@settings(max_examples=200)
@given(st.tuples(decimals, decimals).map(sorted), st.floats(-11, 11))
def test_a_box_of_floats_contains_the_exact_one_and_decimals_lie_inside(ends, value):
    box = InputBox((ends[0],), (ends[1],))
    region = region_of(box, (1,))
    center, radius = Fraction(region.center.item()), Fraction(region.radius.item())
    assert center - radius <= ends[0] and ends[1] <= center + radius
    (text,), *others = decimals_inside(torch.tensor([[value]], dtype=torch.float64), box)
    assert all(ends[0] <= Fraction(each) <= ends[1] for each in (text, *itertools.chain(*others)))
    if ends[1] - ends[0] > 1e-5:
        assert Fraction(text) == Fraction(str(np.float32(text))), "the decimal is a float32's"


def test_decimals_of_boxes_without_a_float32():
    assert decimal_between(Fraction(1, 10), Fraction(1, 10)) == "0.1"
    assert decimal_between(Fraction(-25, 1000), Fraction(-2, 100)) == "-0.02"
    assert decimal_between(Fraction(1, 3), Fraction(1, 2)) == "0.4"
    assert decimal_between(Fraction(3), Fraction(3)) == "3.0"
    with pytest.raises(NoDecimalError, match="no decimal from 1/3"):
        decimal_between(Fraction(1, 3), Fraction(1, 3))


def test_an_end_that_is_no_decimal_leaves_decimals_beside_it():
    text = f"{declared(1, 1)}(assert (>= (* 3 X_0) 1))(assert (<= X_0 0.5))(assert (<= Y_0 1))"
    (case,) = property_of(parse(text)).cases
    assert case.box.lower == (Fraction(1, 3),)
    texts = [text for (text,) in decimals_inside(torch.tensor([[1 / 3]], dtype=torch.float64), case.box)]
    assert texts == ["0.33333334", "0.3333333432674407958984375"]


@given(st.fractions(-10, 10))
def test_rounding_up_is_the_smallest_float_above(number):
    for kind in (np.float32, np.float64):
        rounded = round_up(number, kind)
        assert Fraction(rounded) >= number > Fraction(float(np.nextafter(kind(rounded), kind(-np.inf))))


def case_of(bound, coefficient=Fraction(1), low=Fraction(0), high=Fraction(1)):
    return property_of(parse(text_of(f"(<= (* {coefficient} Y_0) {bound})", low, high, INPUTS, OUTPUTS)))


def identity():
    """Return the network whose first output is its first input."""
    return with_weights(nn.Sequential(nn.Linear(INPUTS, OUTPUTS)), torch.eye(OUTPUTS, INPUTS))


def test_exactly_the_bound_is_a_counterexample_only_if_both_arithmetics_say_so():
    network = identity()
    below_float32 = "0.49999999"  # the bound is rounded up to 0.5, which no part of the box is proved to exceed
    for low, bound, expected in [("0.5", "0.25", "unsat"), ("0.5", "0.75", "sat"), ("0.5", below_float32, "unknown")]:
        answer = solve(case_of(bound, low=low), network, functools.partial(run, network), seconds=2)
        assert answer.status == expected, (low, bound)
    answer = solve(case_of("0.75", low="0.5"), network, lambda points: run(network, points) + 1, SECONDS)
    assert answer.status == "unknown" and "onnxruntime" in answer.detail


def test_a_point_is_a_box():
    network = identity()
    for bound, expected in [("0.1000001", "sat"), ("0.0999999", "unsat")]:
        answer = solve(case_of(bound, low="0.1", high="0.1"), network, functools.partial(run, network), SECONDS)
        assert answer.status == expected
        if expected == "sat":
            assert answer.counterexample.inputs == ["0.1", "0.1"]


def test_a_case_without_constraints_on_outputs_is_satisfied_by_any_input():
    network = identity()
    property_ = case_of("1")
    (case,) = property_.cases
    property_ = type(property_)(INPUTS, OUTPUTS, (case, Case(case.box, ())))
    assert solve(property_, network, functools.partial(run, network), SECONDS).status == "sat"


def test_other_shapes_are_refused():
    network = identity()
    with pytest.raises(InputError, match="found 2 inputs and 3 outputs, allowed: 3 and 3"):
        network.input_shape, network.output_shape = (3,), (3,)
        check_shapes(case_of("1"), network, "p.vnnlib")
    network.input_shape = network.output_shape = (2, 3)
    for shape, is_the_same in [((1, 2, 3), True), ((2, 3, 1), True), ((3, 2), False), ((6,), False)]:
        property_ = Property(6, 6, (), declared=(Declaration("A", "real", shape),) * 2)
        with nullcontext() if is_the_same else pytest.raises(InputError, match=r"allowed: \[1, 2, 3\]"):
            check_shapes(property_, network, "p.vnnlib")
