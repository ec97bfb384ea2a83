"""Float32 first: the same verdicts as float64's, by bounds that no exact optimum refutes."""

import pytest
import torch
import torch.nn.functional as F
from equilibria import exact_outputs, folded_network
from graphs import SEARCHED, network, optima, specs
from oracles import Lambda, points_of, random_box
from pairs import every_pair
from torch import nn

from cerdeq.bounds import BOUNDS, Interval, float32, lower_bounds, trace
from cerdeq.bounds.float32 import in_float32
from cerdeq.equilibrium import Equilibrium, fold
from cerdeq.precision import counted_rounding

pytestmark = pytest.mark.usefixtures("short_searches", "slow_float64")
NAMES = ["deep", "residual", "convolution padded", "batch norm 2d", "leaky -0.5", "max pool"]
PAIRS = [(name, method) for n, name in enumerate(NAMES) for m, method in enumerate(BOUNDS) if (n + m) % 2]


def question(name, seed=0, batch=1):
    """A float64 network of float32 numbers, its programs in both precisions, a box, functionals of the outputs."""
    graph, shape = network(name, seed)
    graph.float().double()
    box = random_box(batch, *shape)
    spec = specs(graph, box, rows=3).float().double()
    return graph, trace(graph, linear=True), in_float32(graph, linear=True), box, spec


def test_a_network_that_float32_would_change_is_left_alone():
    plain = nn.Sequential(nn.Linear(3, 2))
    assert in_float32(plain.double()) is not None
    with torch.no_grad():
        plain[0].bias[1] = 1 / 3
    assert in_float32(plain) is None
    normed = nn.Sequential(nn.BatchNorm1d(2)).double().eval()
    normed[0].running_var.fill_(0.1)
    assert in_float32(normed) is None
    model = nn.Sequential(Equilibrium(2, nn.Linear(3, 2), kernel_size=None)).double().eval()
    assert in_float32(model) is None  # W is computed, in either precision, from another kernel
    fold(model)
    assert in_float32(model.float().double()) is not None


@pytest.mark.parametrize(("machine", "direct"), [("x86_64", True), ("aarch64", False)])
def test_machines_that_may_choose_winograd_are_left_alone(monkeypatch, machine, direct):
    monkeypatch.setattr(float32.platform, "machine", lambda: machine)
    assert (in_float32(nn.Sequential(nn.Linear(3, 2)).double()) is not None) == direct


def test_convolutions_are_direct(capfd):
    """As oneDNN itself says; it may be built without a voice."""
    x, w = torch.randn(2, 64, 16, 16), torch.randn(64, 64, 3, 3)
    with counted_rounding("cpu"), torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        F.conv2d(x, w, padding=1), F.conv_transpose2d(x, w, padding=1)
    lines = [line for line in capfd.readouterr().out.splitlines() if "convolution" in line and ",exec," in line]
    if not lines:
        pytest.skip("oneDNN does not say")
    assert all("_direct" in line and "wino" not in line for line in lines), lines


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_what_float32_proves_is_true_and_what_float64_proves_is_proved(name, method):
    graph, wide, small, box, spec = question(name)
    assert small is not None
    x = Interval(box.center, box.radius)
    minima, _, _ = optima(graph, box, spec)
    alone = lower_bounds(wide, x, spec, method)
    hair = 1e-3 if method in SEARCHED else 1e-9
    for target in (-1e9, alone.min().item() - hair, alone.median().item() - 0.1, alone.max().item() + hair):
        first = lower_bounds(wide, x, spec, method, target, float32=small)
        assert first.dtype == torch.float64
        assert (first <= minima + 1e-6 * (1 + minima.abs())).all()
        by_wide = lower_bounds(wide, x, spec, method, target)
        assert ((first > target).all(1) == (by_wide > target).all(1)).all(), target


@pytest.mark.parametrize(("method", "kernel"), every_pair(BOUNDS, [None, 3]))
def test_equilibria_in_float32_are_bounded_truly(method, kernel):
    model = folded_network(kernel, 1).float().double()
    box = random_box(2, *((3,) if kernel is None else (1, 3, 3)))
    with torch.no_grad():
        outputs = exact_outputs(model, torch.stack(list(points_of(box, 30))))
    spec = torch.randn(2, 3, outputs.shape[-1]).double()
    wide, small = trace(model, linear=True), in_float32(model, linear=True)
    x = Interval(box.center, box.radius)
    alone = lower_bounds(wide, x, spec, method)
    target = alone.min().item() - 1e-2
    first = lower_bounds(wide, x, spec, method, target, float32=small)
    assert (first > target).all()
    assert (first <= torch.einsum("bkn,pbn->pbk", spec, outputs).amin(0) + 1e-9).all()


def sums_by_keyword(module, x):
    return module.layer(x) + torch.sum(input=module.w)


def sums_while_traced(module, x):
    return module.layer(x) + module._parameters["w"].sum()


def scales_its_weight(module, x):
    return F.linear(x, module.w.view(1, 3) * 0.1)


def uses_a_plain_tensor(module, x):
    return F.linear(x, torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("forward", [sums_by_keyword, sums_while_traced, scales_its_weight, uses_a_plain_tensor])
def test_a_model_that_computes_with_its_numbers_or_hides_them_is_left_to_float64(forward):
    model = Lambda(forward, w=torch.tensor([-1.0, -1e8, 1e8]))
    model.layer = nn.Linear(3, 2)
    assert in_float32(model.double().eval(), True) is None


def test_sums_that_are_too_long_for_float32_are_left_to_float64():
    model = nn.Linear(1_100_000, 1).double().eval()
    nn.init.zeros_(model.weight)
    x = Interval(torch.zeros(1, 1_100_000).double(), torch.ones(1, 1_100_000).double())
    spec = torch.ones(1, 1, 1).double()
    wide, first = (
        lower_bounds(trace(model, True), x, spec, "crown-ibp", 1e9, float32=program)
        for program in (None, in_float32(model, True))
    )
    assert torch.equal(wide, first)


@pytest.mark.parametrize(("variance", "weight"), [(1e20, 1e-34), (1e30, 3e-28)])
@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_a_scale_that_float32_rounds_to_a_subnormal_number_loses_no_proof(variance, weight, method):
    norm = nn.BatchNorm1d(1)
    model = nn.Sequential(nn.Linear(1, 1), norm, nn.ReLU(), nn.Linear(1, 1)).eval()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(norm.running_var, variance)
    nn.init.constant_(norm.weight, weight)
    nn.init.constant_(model[0].weight, 1e22)
    scale = (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).item()
    nn.init.constant_(model[3].weight, -1 / (1e22 * scale) if 1e-38 < 1 / (1e22 * scale) < 1e38 else -1e22)
    model.double()
    x = Interval(torch.ones(1, 1).double(), torch.zeros(1, 1).double())
    true = model(x.center).item()
    lower = lower_bounds(
        trace(model, True), x, torch.ones(1, 1, 1).double(), method, -1e30, float32=in_float32(model, True)
    )
    assert float(lower) <= true
