"""Results of small properties are exact; the checker confirms them, and never what exact arithmetic contradicts."""

from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_properties import (
    INPUTS,
    OUTPUTS,
    TINY,
    certified_result,
    certified_results,
    proved_by,
    run,
    solved,
    tensors_of,
    with_bounds_raised,
    with_weights,
)
from torch import nn

from cerdeq.onnx.layers import Apply
from harness.checker.bounds.maps import UnknownLayerError
from harness.checker.properties import NotConfirmedError, confirm_sat, confirm_unsat
from harness.checker.violations import enclosing_box, round_down
from harness.vnnlib.properties import MOST_TOGETHER, Case, Constraint, InputBox, Property


def check_counterexample(property_, weights, inputs):
    """Check in exact arithmetic that the decimals lie in a case's box and that their outputs satisfy it."""
    hidden, bias, out, offset = (np.vectorize(Fraction, otypes=[object])(w) for w in weights)
    x = np.array([Fraction(text) for text in inputs])
    y = out @ np.maximum(hidden @ x + bias, Fraction(0)) + offset
    assert any(
        all(low <= value <= high for low, value, high in zip(case.box.lower, x, case.box.upper, strict=True))
        and all(sum(factor * y[n] for n, factor in c.coefficients.items()) <= c.bound for c in case.constraints)
        for case in property_.cases
    )


def check_seeds(seeds, together=MOST_TOGETHER):
    """Check results against exact ones, and that certificates prove no more; return what proved or refuted them."""
    ways = []
    for seed in seeds:
        if (small := solved(seed, together)) is None:
            continue
        network, weights, property_, result, violation = small
        tensors, ran = tensors_of(result), partial(run, network)
        if abs(violation) > 1e-5:
            assert result.status == ("sat" if violation < 0 else "unsat"), (seed, violation, result)
        assert not (result.status == "unsat" and violation < -1e-9), (seed, violation)
        if result.status == "unsat":
            ways.append(proved_by(network, property_, tensors))
            assert ways[-1], (seed, violation)
            sat = with_bounds_raised(property_, Fraction(violation) + TINY)
            assert not proved_by(network, sat, tensors), seed
        elif result.status == "sat":
            ways.append("sat")
            check_counterexample(property_, weights, result.counterexample.inputs)
            confirm_sat(property_, network, ran, result.counterexample_text)
            assert violation > -1e-9 or not proved_by(network, property_, {}), seed
    return ways


def test_results_are_the_exact_ones_and_certificates_prove_no_other_property():
    ways = check_seeds((*range(4), 5, 6, 7, 10, 16, 20, 24, 25, 26))  # most others are satisfied by an input
    assert {"linear", "certificate"} <= set(ways) and ways.count("sat") > 4, ways


def test_results_of_small_groups_are_the_exact_ones_and_their_certificates_are_confirmed(monkeypatch):
    """Cases of one box are decided in groups; here in ones of up to three constraints."""
    monkeypatch.setattr("harness.vnnlib.properties.MOST_TOGETHER", 3)
    seeds = (2, 3, 5, 36, 57, 67)
    assert {"sat", "linear", "certificate"} <= set(check_seeds(seeds, together=3))
    assert max(len(solved(seed, 3)[2].groups) for seed in seeds if solved(seed, 3)) > 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_hundred_results_are_the_exact_ones():
    check_seeds(range(100, 300))


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_other_numbers_in_a_certificate_never_prove_a_property_that_an_input_satisfies(seed):
    random = np.random.default_rng(seed)
    network, property_, tensors, violation = certified_results()[seed % len(certified_results())]
    by = Fraction(violation) + random.choice([TINY, Fraction(1, 10)])
    for name, tensor in tensors.items():
        if random.integers(2):
            others = random.permutation(tensor.ravel()).reshape(tensor.shape).astype(tensor.dtype)
            noise = {"slopes": 256, "multipliers": 3}.get(name.rpartition("/")[2])
            if noise and random.integers(2):
                others = random.integers(0, noise, tensor.shape).astype(tensor.dtype)
            tensors = tensors | {name: others}
    assert not proved_by(network, with_bounds_raised(property_, by), tensors)


def test_a_case_without_constraints_is_never_proved():
    network, property_, tensors, _ = certified_result(0)
    cases = (*property_.cases, Case(property_.cases[0].box, ()))
    assert not proved_by(network, replace(property_, cases=cases), tensors)
    assert not proved_by(network, Property(INPUTS, OUTPUTS, cases[-1:]), tensors)


@given(st.fractions(-10, 10), st.fractions(0, 1))
def test_the_box_contains_the_exact_one(low, width):
    box = enclosing_box(InputBox((low,), (low + width,)), (1,))
    center, radius = Fraction(box.center.item()), Fraction(box.radius.item())
    assert center - radius <= low and low + width <= center + radius
    for kind in (np.float32, np.float64):
        assert Fraction(round_down(low, kind)) <= low < Fraction(float(np.nextafter(kind(round_down(low, kind)), 9e9)))


def test_another_runtime_is_noticed():
    """Also one that differs only between the two corners where all inputs are lowest or highest."""
    network, property_, tensors, _ = certified_result(0)
    corners = np.concatenate([[case.box.lower, case.box.upper] for case in property_.cases]).astype(np.float64)

    def differ_inside(points):
        is_corner = np.isclose(points[:, None], corners).all(2).any(1)
        return run(network, points) + np.where(is_corner, 0, np.float32(0.01))[:, None]

    for other in (lambda points: run(network, points) + 0.01, differ_inside):
        with pytest.raises(UnknownLayerError, match="outputs in float32 differ"):
            confirm_unsat(property_, network, other, tensors)


def test_batch_norm_of_sequences_is_that_of_torch():
    """Y_0 = 100 (X_0 - X_1) + 150, from -50 to 350; with the scale of the other channel it would be above 148."""
    norm = nn.BatchNorm1d(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 100.0])
    reshape = Apply(torch.reshape, (-1, 2, 2))
    network = nn.Sequential(nn.Linear(2, 4), reshape, norm, nn.Flatten(), nn.Linear(4, 1)).eval()
    network[0].weight.data, network[0].bias.data = torch.tensor([[1.0, -1.0]] * 4), torch.zeros(4)
    network[4].weight.data, network[4].bias.data = torch.eye(4)[2:3], torch.tensor([150.0])
    network.input_shape, box = (2,), InputBox((Fraction(-1),) * 2, (Fraction(1),) * 2)
    for bound, way in ((0, ""), (-51, "linear")):
        case = Case(box, (Constraint({0: Fraction(1)}, Fraction(bound)),))
        assert proved_by(network, Property(2, 1, (case,)), {}) == way


def test_a_counterexample_must_hold_in_both_arithmetics():
    """The exact first output is 0.5."""
    network = with_weights(nn.Sequential(nn.Linear(INPUTS, OUTPUTS)), torch.eye(OUTPUTS, INPUTS))
    box = InputBox((Fraction(0),) * INPUTS, (Fraction(1),) * INPUTS)
    text = "((X_0 0.5)\n(X_1 0.25)\n(Y_0 0.5)\n(Y_1 0.25)\n(Y_2 0.0))"
    no_case, other = (NotConfirmedError, "no case is proved"), (UnknownLayerError, "outputs in float32 differ")
    for bound, shift, refusal in [
        ("0.50001", 0.0, None),
        ("0.50001", 2e-5, no_case),
        ("0.49999", -2e-5, no_case),
        ("0.49999", 0.0, no_case),
        ("0.8", 0.01, other),
    ]:
        case = Case(box, (Constraint({0: Fraction(1)}, Fraction(bound)),))
        arguments = (
            Property(INPUTS, OUTPUTS, (case,)),
            network,
            lambda points, by=shift: run(network, points) + by,
            text,
        )
        if refusal is None:
            confirm_sat(*arguments)
            continue
        with pytest.raises(refusal[0], match=refusal[1]):
            confirm_sat(*arguments)


def test_a_refused_certificate_is_said_to_be_refused():
    network, property_, tensors, _ = certified_result(0)
    faulty = tensors | {next(iter(tensors)).partition("/")[0] + "/unknown/slopes": np.zeros((1, 1), np.uint8)}
    with pytest.raises(NotConfirmedError, match="certificate refused: unknown/slopes names no activation"):
        confirm_unsat(property_, network, partial(run, network), faulty)
