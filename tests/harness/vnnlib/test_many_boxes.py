"""Properties of a thousand boxes and more, as of learned indices: decided together, within the limit."""

import time
from dataclasses import replace
from fractions import Fraction
from functools import partial

import pytest
import torch
from onnx_writer import export_onnx
from small_properties import declared, run, text_of
from torch import nn

from cerdeq.deadline import DeadlineError, stop_at
from harness.checker.properties import confirm_unsat
from harness.vnnlib import solve as solving
from harness.vnnlib.brackets import parse
from harness.vnnlib.properties import Constraint
from harness.vnnlib.query import query_of_boxes, region_of, with_flat_outputs, with_violations
from harness.vnnlib.solve import solve, solve_files
from harness.vnnlib.version1 import property_of

DECLARED = declared(1, 1)


def network_of():
    """A network of one input and one output."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)).eval()
    for layer in network[::2]:
        layer.weight.data *= 2.5
    network.input_shape = (1,)
    return network


def property_of_boxes(network, count, error, width):
    """In each of so many boxes of this width the output differs from that at the centre by this error, or more."""
    cases = []
    for number in range(count):
        center = number / count
        value = network(torch.tensor([[center]])).item()
        box = f"(>= X_0 {center - width:.9f}) (<= X_0 {center + width:.9f})"
        cases += [f"(and {box} (<= Y_0 {value - error:.9f}))", f"(and {box} (>= Y_0 {value + error:.9f}))"]
    return property_of(parse(f"{DECLARED} (assert (or {' '.join(cases)}))"))


def test_a_thousand_boxes_are_decided_together_and_confirmed():
    network = network_of()
    answer = solve(property_of_boxes(network, 1000, 0.01, 1e-4), network, partial(run, network), 120, certificates=True)
    assert (answer.status, answer.branches, answer.certificate) == ("unsat", 0, {})
    few = property_of_boxes(network, 20, 0.01, 1e-4)
    assert confirm_unsat(few, network, partial(run, network), {}) == "linear"


def test_boxes_that_are_too_wide_for_linear_bounds_are_searched_and_their_certificates_are_theirs():
    network = network_of()
    property_ = property_of_boxes(network, 6, 0.3, 0.2)
    undecided = solving._undecided_boxes(property_.groups, network, 1, time.monotonic() + 60)
    assert 0 < len(undecided) < 6
    answer = solve(property_, network, partial(run, network), 120, certificates=True)
    assert answer.status == "unsat" and {int(name.split("/")[0]) for name in answer.certificate} <= set(undecided)
    tensors = {name: tensor.numpy() for name, tensor in answer.certificate.items()}
    assert confirm_unsat(property_, network, partial(run, network), tensors) == "certificate"


def test_one_box_with_a_counterexample_among_many_is_found():
    network = network_of()
    text = f"(and (>= X_0 0.5) (<= X_0 0.6) (>= Y_0 {network(torch.tensor([[0.55]])).item() - 1e-4:.9f}))"
    others = property_of_boxes(network, 300, 0.01, 1e-4)
    own = property_of(parse(f"{DECLARED} (assert (or {text} {text}))"))
    property_ = replace(others, cases=(*others.cases[:200], *own.cases, *others.cases[200:]))
    assert solve(property_, network, partial(run, network), 120).status == "sat"


def test_boxes_of_conjunctions_are_decided_together_and_confirmed():
    """The second constraint of each conjunction holds in the whole box, or in half of it; the first in none."""
    network = network_of()
    property_ = property_of_boxes(network, 300, 0.01, 1e-4)
    cases = []
    for number, case in enumerate(property_.cases):
        (own,), value = case.constraints, Fraction(network(torch.tensor([[number // 2 / 300]])).item())
        others = [Constraint({0: Fraction(1)}, value + shift) for shift in (1, 0)[: 1 + number % 2]]
        cases.append(replace(case, constraints=(*others, own) if number % 3 else (own, *others)))
    property_ = replace(property_, cases=tuple(cases))
    assert not solving._undecided_boxes(property_.groups, network, 1, time.monotonic() + 300)
    few = replace(property_, cases=property_.cases[:40])
    assert confirm_unsat(few, network, partial(run, network), {}) == "linear"
    alone = replace(property_, cases=tuple(replace(case, constraints=others_of(case)) for case in property_.cases[:40]))
    assert len(solving._undecided_boxes(alone.groups, network, 1, time.monotonic() + 300)) == 20


def others_of(case):
    """The constraints of a conjunction that hold somewhere in its box."""
    return tuple(c for c in case.constraints if c.coefficients == {0: 1} and c.bound.denominator != 10**9)


def case_texts(count, shift):
    """Return cases of two constraints each, both on the only output; no value satisfies both."""
    return [f"(and (<= Y_0 {n / count - shift:.6f}) (>= Y_0 {n / count:.6f}))" for n in range(count)]


def test_many_cases_of_one_box_are_decided_in_groups_and_confirmed():
    """10,000 cases in 348 kB took 8.4 GB once, then ended in a RuntimeError."""
    network = network_of()
    property_ = property_of(parse(text_of(f"(or {' '.join(case_texts(3000, 0.5))})", 0.2, 0.3, 1, 1)))
    assert [len(cases) for cases in property_.groups] == [500] * 6
    answer = solve(property_, network, partial(run, network), 120, certificates=True)
    assert answer.status == "unsat"
    few = property_of(parse(text_of(f"(or {' '.join(case_texts(1200, 0.5))})", 0.2, 0.3, 1, 1)))
    assert confirm_unsat(few, network, partial(run, network), {}) == "linear"


def test_a_box_of_many_cases_ends_at_the_limit(tmp_path):
    """Without deadlines, building the constraints of 40 groups took longer than the limit."""
    network = network_of()
    property_ = property_of(parse(text_of(f"(or {' '.join(case_texts(20_000, 1e-3))})", 0.0, 1.0, 1, 1)))
    began = time.monotonic()
    assert solve(property_, network, partial(run, network), 0.5).status == "timeout"
    assert time.monotonic() - began < 10
    region, model = region_of(property_.cases[0].box, (1,)), with_flat_outputs(network)
    for late in (
        lambda: with_violations(network, region, property_.groups[0], 1),
        lambda: query_of_boxes(model, property_.groups, (1,), 1),
    ):
        with stop_at(0.0), pytest.raises(DeadlineError):
            late()


def test_files_that_take_too_long_to_read_are_a_timeout(tmp_path):
    pytest.importorskip("onnxruntime")

    export_onnx(network_of(), tmp_path / "net.onnx", (1,))
    (tmp_path / "p.vnnlib").write_text(text_of("(<= Y_0 0)", 0, 1, 1, 1))
    assert solve_files(tmp_path / "net.onnx", tmp_path / "p.vnnlib", 1e-9).status == "timeout"
