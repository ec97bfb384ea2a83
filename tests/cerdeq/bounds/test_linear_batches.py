"""Linear bounds of batches, in chunks and out of memory; unusual networks, modes and specs."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from graphs import LARGE, SEARCHED, deep, network, specs
from oracles import DTYPES, Lambda, assert_contains, points_of, random_box
from pairs import every_pair
from torch import nn

from cerdeq import Box, bound, margin_spec
from cerdeq.bounds import BOUNDS, Interval, lower_bounds, trace

pytestmark = pytest.mark.usefixtures("short_searches", "slow_float64")
# ---------------------------------------------------------------------------------------------------------------------
# Memory and batches


@pytest.mark.parametrize(
    ("memory", "method", "name"),
    [(1, "crown", "dense images"), (5_000, "alpha-crown", "residual"), (5_000, "crown", "constant in a concatenation")],
)
def test_chunks_change_nothing(memory, method, name):
    graph, shape = network(name, seed=2)
    box = random_box(3, *shape)
    spec = specs(graph, box)
    program, x = trace(graph, linear=True), Interval(box.center, box.radius)
    at_once = lower_bounds(program, x, spec, method, memory=LARGE)
    torch.testing.assert_close(lower_bounds(program, x, spec, method, memory=memory), at_once, rtol=1e-9, atol=1e-9)
    if method in SEARCHED:
        target = at_once.median().item()
        bounds = [lower_bounds(program, x, spec, method, target, m).clamp(max=target) for m in (LARGE, memory)]
        torch.testing.assert_close(*bounds, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "method"),
    every_pair(["convolution stride", "linear function", "max pools", "dense", "shared", "constants"], BOUNDS),
)
def test_a_batch_is_its_examples(name, method):
    graph, shape = network(name, seed=2)
    box = random_box(3, *shape)
    spec = specs(graph, box)
    together = bound(graph, box, method, spec)
    for example in range(3):
        one = slice(example, example + 1)
        alone = bound(graph, Box(box.center[one], box.radius[one]), method, spec[one])
        # The search may take another way after a tie that rounding broke.
        tolerance = 0.05 if method in SEARCHED else 1e-9
        torch.testing.assert_close(alone, tuple(end[one] for end in together), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", BOUNDS)
def test_no_examples_no_rows_and_rows_of_zeros_are_bounded(method):
    model, box, empty = deep(), random_box(2, 3), torch.zeros(0, 3, dtype=torch.float64)
    assert [end.shape for end in bound(model, Box(empty, empty), method)] == [(0, 2)] * 2
    without_rows = torch.zeros(2, 0, 2, dtype=torch.float64)
    assert [end.shape for end in bound(model, box, method, without_rows)] == [(2, 0)] * 2
    lower, upper = bound(model, box, method, torch.zeros(2, 1, 2, dtype=torch.float64))
    assert (lower <= 0).all() and (upper >= 0).all() and (upper - lower < 1e-200).all()


def test_a_gpu_that_runs_out_of_memory_is_asked_for_less(monkeypatch):
    """By halves of the examples and of the memory, down to one example; the bounds are the same."""
    model, box = deep(), random_box(5, 3)
    program, x = trace(model, linear=True), Interval(box.center, box.radius)
    spec = torch.eye(2, dtype=torch.float64).expand(5, -1, -1)
    expected, crown, questions = lower_bounds(program, x, spec, "crown"), BOUNDS["crown"], []

    def scarce(question):
        examples = len(question.spec)
        questions.append((examples, question.memory))
        if examples > 1 or question.memory > 2**24:
            raise torch.OutOfMemoryError
        return crown.lower(question)

    monkeypatch.setitem(BOUNDS, "crown", replace(crown, lower=scarce))
    torch.testing.assert_close(lower_bounds(program, x, spec, "crown", memory=2**27), expected)
    assert questions[0] == (5, 2**27) and questions.count((1, 2**24)) == 5


# ---------------------------------------------------------------------------------------------------------------------
# Unusual networks, modes and specs


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x,
        lambda m, x: -x,
        lambda m, x: m.act(m.layer(x)) * 0 + x,
        lambda m, x: m.later(m.layer(x)),
        lambda m, x: torch.cat([x, x], 1),
        lambda m, x: F.max_pool2d(x.view(x.size(0), 1, 3, 1), (3, 1)).flatten(1),
    ],
    ids=["input", "negative", "relu times 0", "in the middle", "twice", "max pool alone"],
)
def test_degenerate_networks_are_bounded(forward, method):
    model = Lambda(forward)
    model.layer, model.act = nn.Linear(3, 3), nn.ReLU()

    def later(value):
        _unused = model.act(value) + 1
        return value

    model.later = later
    model, box = model.double().eval(), random_box(2, 3)
    lower, upper = bound(model, box, method)
    with torch.no_grad():
        values = torch.stack([model(x) for x in points_of(box, 64)])
    assert_contains(lower, upper, values)
    assert (lower > values.amin(0) - 3).all()


@pytest.mark.parametrize("method", BOUNDS)
def test_the_caller_s_modes_change_nothing(method):
    """Inference mode, autocast, and gradients that are enabled; nor do bounds change the model or its input."""
    graph, shape = network("in place", dtype=torch.float32)
    box = random_box(2, *shape, dtype=torch.float32)
    center, state = box.center.clone(), copy.deepcopy(graph.state_dict())
    expected = bound(graph, box, method)
    assert torch.equal(box.center, center)
    assert all(torch.equal(value, state[name]) for name, value in graph.state_dict().items())
    assert method == "ibp" or not any(end.requires_grad for end in expected)
    for mode in (torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with mode:
            torch.testing.assert_close(bound(graph, box, method), expected, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in graph.parameters())


@pytest.mark.parametrize("method", BOUNDS)
def test_a_window_of_padding_alone_has_no_lower_bound(method):
    """torch gives -inf there: every finite bound of it is wrong."""
    model = nn.Sequential(nn.MaxPool2d(2, stride=1, padding=1, dilation=5)).double().eval()
    lower, _ = bound(model, random_box(1, 1, 4, 4), method)
    assert not lower.isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", BOUNDS)
def test_a_spec_may_be_of_any_type(method, dtype):
    model, box = deep(dtype), random_box(3, 3, dtype=dtype)
    labels = torch.tensor([0, 1, 0])
    spec = margin_spec(labels, 2)
    several = [bound(model, box, method, spec.to(kind)) for kind in (torch.float32, torch.float64, torch.int64)]
    assert all(end.dtype == dtype for ends in several for end in ends)
    for ends in several[1:]:
        torch.testing.assert_close(ends, several[0], rtol=0, atol=0)
