"""Backward rules against autograd, and their own rounding."""

import copy

import pytest
import torch
import torch.nn.functional as F
from graphs import CONSTANT, normed, pool, wild_box, with_tensors
from milp import Graph, Node
from oracles import DTYPES, dense_affine, fractions, random_box
from torch import nn

from cerdeq import Box
from cerdeq.bounds import Backward, Context, Interval, bounds, trace
from cerdeq.bounds.forward import values_of
from cerdeq.boxes import narrowed
from cerdeq.rules.operators import TABLE

SINGLE = {
    "conv2d": (nn.Conv2d(2, 4, 2, stride=2, padding=1, groups=2), (2, 4, 3)),
    "conv2d dilated": (nn.Conv2d(2, 3, (2, 3), dilation=(2, 1), padding=(0, 2)), (2, 4, 3)),
    "conv2d with a rest": (nn.Conv2d(1, 2, 2, stride=3), (1, 7, 6)),
    "conv2d same": (nn.Conv2d(1, 2, (2, 4), padding="same", dilation=(3, 1)), (1, 5, 6)),
    "linear": (nn.Linear(4, 3), (4,)),
    "linear last dimension": (nn.Linear(3, 2), (2, 4, 3)),
    "batch_norm 1d": (normed(nn.BatchNorm1d(4)), (4,)),
    "batch_norm of sequences": (normed(nn.BatchNorm1d(4)), (4, 3)),
    "batch_norm 2d": (normed(nn.BatchNorm2d(2, affine=False)), (2, 3, 3)),
    "add": (lambda x: torch.add(x, x, alpha=-0.3), (4,)),
    "add constant": (lambda x: torch.add(CONSTANT, x, alpha=0.3), (4,)),
    "add number": (lambda x: 3 + x, (4,)),
    "subtract": (lambda x: torch.sub(x, x, alpha=3), (4,)),
    "subtract constant": (lambda x: torch.sub(CONSTANT, x, alpha=3), (4,)),
    "multiply": (lambda x: CONSTANT * x, (4,)),
    "multiply wider": (lambda x: CONSTANT * x, (3, 1)),
    "divide": (lambda x: x / (CONSTANT + 3), (2, 4)),
    "negative": (lambda x: -x, (2, 4)),
    "avg_pool2d": (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False), (2, 4, 5)),
    "avg_pool2d divisor": (lambda x: F.avg_pool2d(x, (2, 1), divisor_override=-3), (2, 4, 5)),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d((3, None)), (2, 4, 5)),
    "concatenate": (
        with_tensors(lambda x, c: torch.cat([x, c.expand(x.size(0), 2, -1), x], 1), c=CONSTANT),
        (2, 4),
    ),
    "flatten": (nn.Flatten(1, 2), (2, 3, 2)),
    "reshape": (lambda x: x.reshape(x.size(0), 3, -1), (2, 3, 2)),
    "identity": (nn.Identity(), (4,)),
    "dropout": (nn.Dropout(), (4,)),
}

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # with even kernels


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("name", SINGLE)
def test_pulled_coefficients_are_those_of_autograd(name, sound):
    apply, shape = SINGLE[name]
    model = Graph([Node(apply, (0,))]).double().eval()
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    program = trace(model, linear=True)
    with torch.no_grad():
        values = values_of(program, Interval(x.detach(), torch.rand_like(x)), Context(sound=True))
    step = program.steps[program.output - 1]
    output = model(x)
    coefficients = torch.randn(2, 3, *output.shape[1:], dtype=torch.float64)
    arguments, options = step.call(values)
    with torch.no_grad():
        pulled = step.record.backward(Backward(sound=sound), coefficients, *arguments, **options)
        offset = (coefficients * model(torch.zeros_like(x)).unsqueeze(1)).flatten(2).sum(2)
    assert set(step.sources) == {0}
    pulled_back = sum(pulled.coefficients)
    for row in range(3):
        (expected,) = torch.autograd.grad((coefficients[:, row] * output).sum(), x, retain_graph=True)
        torch.testing.assert_close(pulled_back[:, row], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pulled.constant, offset, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", SINGLE)
def test_each_backward_rule_counts_its_own_rounding(name, scale):
    """In float32, judged by float64 where the difference between the coefficients and the true ones hurts most."""
    apply, shape = SINGLE[name]
    wide, model = (
        Graph([Node(copy.deepcopy(apply), (0,))]).to(dtype).eval() for dtype in (torch.float64, torch.float32)
    )
    wide.load_state_dict(model.state_dict())
    box = random_box(6, *shape, scale=scale, dtype=torch.float32)
    program = trace(model, linear=True)
    with torch.no_grad():
        values = values_of(program, Interval(box.center, box.radius), Context(sound=True))
        step = program.steps[program.output - 1]
        coefficients = torch.randn(6, 4, *values[program.output].center.shape[1:])
        arguments, options = step.call(values)
        pulled = step.record.backward(Backward(sound=True), coefficients, *arguments, **options)
        pulled_back = sum(part.double() for part in pulled.coefficients)
        matrix, _ = dense_affine(wide, shape)
        exact = (coefficients.double().flatten(2) @ matrix).view_as(pulled_back)
        corner = box.center.double().unsqueeze(1) + box.radius.double().unsqueeze(1) * (pulled_back - exact).sign()
        for row in range(4):
            left = (coefficients[:, row].double() * wide(corner[:, row])).flatten(1).sum(1)
            right = (pulled_back[:, row] * corner[:, row]).flatten(1).sum(1) + pulled.constant[:, row]
            assert (right <= left + 1e-14 * left.abs()).all()


def test_max_pooling_counts_its_own_rounding():
    """Of a point every window is decided, and nine coefficients are added up in float32."""
    graph = Graph([pool(0, 3, stride=1)]).eval()
    x = torch.randn(20, 2, 6, 6)
    program, zero = trace(graph, linear=True), torch.zeros_like(x)
    values = values_of(program, Interval(x, zero), Context(sound=True))
    coefficients = torch.randn(20, 30, 2, 4, 4)
    arguments, options = program.steps[0].call(values)
    pulled = program.steps[0].record.backward(Backward(sound=True), coefficients, *arguments, **options)
    left = torch.einsum("bkchw,bchw->bk", coefficients.double(), graph(x.double()))
    right = torch.einsum("bkchw,bchw->bk", pulled.coefficients[0].double(), x.double()) + pulled.constant
    assert (right <= left + 1e-13).all() and (left - right < 1e-2).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tightened_boxes_and_larger_bounds_are_rounded_outwards(dtype):
    x, ends = wild_box(300, dtype), torch.randn(300, 2, 1, dtype=dtype).sort(1).values
    low, high = (x.center + x.radius * end for end in ends.unbind(1))
    new = narrowed(Box(x.center, x.radius), low, high)
    for c, r, old_c, old_r, lo, hi in zip(
        *(fractions(part.flatten()) for part in (new.center, new.radius, x.center, x.radius, low, high)), strict=True
    ):
        assert (c - r <= max(lo, old_c - old_r) and min(hi, old_c + old_r) <= c + r) or lo > hi
    proved = torch.randn(300, dtype=torch.float64) * 10 ** torch.linspace(-44, 36, 300, dtype=torch.float64)
    larger = bounds.larger(torch.full((300,), -torch.inf, dtype=dtype), proved)
    assert all(a <= b for a, b in zip(fractions(larger), fractions(proved), strict=True))


def test_autograd_has_judged_every_affine_operator():
    nonlinear = {record.name for record in TABLE if record.unsettled is not None}
    assert {name.split(" ")[0] for name in SINGLE} == {record.name for record in TABLE} - nonlinear
