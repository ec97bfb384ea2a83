"""Refusals: which models, specs and arguments are errors, with node and line, before anything is computed."""

import itertools
import types

import pytest
import torch
import torch.nn.functional as F
from cases import mlp
from graphs import LINEAR
from oracles import Lambda, random_box
from torch import nn
from torch.nn.utils import parametrizations

from cerdeq import Box, bound, verify
from cerdeq.bounds import BOUNDS, Operator, UnsupportedOperator, register, trace
from cerdeq.equilibrium.recurrence import apply_weight, weight_gradient
from cerdeq.operators.convolution import conv2d

TWO = torch.tensor([0, 1])
OF_THE_USER, BATCH = (
    r"node '\w+'.*test_refusals\.py, line \d+: .*lambda",
    r"the batch|one list beside slices|does not take",
)
MIXES = r"depends on other images|mixes a batch's examples|need outputs of shape|mixes images"
REFUSED = {  # the input's shape, what the message has, and forwards; c and d are tensors of the module
    "values are read": ((2, 4), OF_THE_USER, [
        lambda m, x: x if x.sum() > 0 else -x, lambda m, x: x * len(x), lambda m, x: torch.cat(list(x)),
        lambda m, x: x * float(x.sum()), lambda m, x: x * x.sum().item(), lambda m, x: torch.from_numpy(x.numpy()),
        lambda m, x: x.method_of_nobody(), lambda m, x: m.nothing(x), lambda m, x: x @ m.c,
        lambda m, x: m.c.view(4, 1, 1) * x,
    ]),
    "no rule": ((2, 4), "node '", [
        lambda m, x: x.bernoulli(), lambda m, x: torch.cat([x, x * x], 1), lambda m, x: F.leaky_relu(x, x),
        lambda m, x: x.view_as(x), lambda m, x: F.dropout(x, 0.5, True), lambda m, x: torch.cat(x.chunk(2, 1), 1),
        lambda m, x: x.chunk(2, 1)[:1], lambda m, x: x[:, x], lambda m, x: x * F.relu(x), lambda m, x: x / (x + 1),
        lambda m, x: 1 / x, lambda m, x: F.linear(x, x), lambda m, x: torch.div(x, 2.0, rounding_mode="floor"),
    ]),
    "the batch": ((2, 4, 4), "the batch", [
        lambda m, x: x.transpose(-3, 1), lambda m, x: x.permute(1, 0, 2), lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 0)),
    ]),
    "indices of the batch": ((2, 2, 2, 2), BATCH, [
        lambda m, x: x[0], lambda m, x: x[:1], lambda m, x: x[[0, 1]], lambda m, x: x[None],
        lambda m, x: x[..., 0:2, :, :, :], lambda m, x: x[:, 0, :, [0, 1]], lambda m, x: x[:, TWO, :, TWO],
        lambda m, x: x[..., TWO], lambda m, x: x[:, True], lambda m, x: x.chunk(2)[0],
        lambda m, x: torch.split(x, 1, dim=-4)[0], lambda m, x: x.select(0, 0), lambda m, x: torch.narrow(x, 0, 0, 1),
        lambda m, x: x.index_select(0, TWO), lambda m, x: torch.relu(x.flatten(1)[:, 0]),
    ]),
    "examples that mix": ((3, 4), MIXES, [
        lambda m, x: F.relu(x / torch.tensor([[[-1.0]], [[2.0]]])), lambda m, x: F.relu(x.view(x.size(0), 1, 4) + x),
        lambda m, x: F.relu(torch.cat([x, -x])), lambda m, x: F.relu(x.flatten()),
    ]),
    "reflected": ((2, 4, 4), "mode='reflect'", [lambda m, x: F.pad(x, (1, 1), mode="reflect")]),
    "matrices of a batch": ((2, 4, 4), "no bound rule: matmul at node", [lambda m, x: x @ m.d]),
    "two values": ((2, 4, 4), "of these bounded values", [lambda m, x: m.d.sum(0) @ x, lambda m, x: x @ x]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_forwards_without_a_rule_are_refused_by_node_and_line(name, method):
    shape, message, forwards = REFUSED[name]
    for (number, forward), examples in itertools.product(enumerate(forwards), {1, shape[0]}):
        if examples == 1 and name != "examples that mix":
            continue
        model = Lambda(forward, c=torch.rand(4), d=torch.randn(2, 4, 3)).double().eval()
        with pytest.raises((UnsupportedOperator, ValueError), match=message):
            bound(model, random_box(examples, *shape[1:]), method)
            pytest.fail(f"{name}, number {number}")


@pytest.fixture
def counted(own_operators):
    """Return a module that does nothing, and the list of the inputs that its rule was run on."""
    inputs = []

    def rule(ctx, x):
        inputs.append(x)
        return x

    class Counted(nn.Module):
        def forward(self, x):
            return x

    register(Operator("counted", rule, (), {Counted: lambda module: {}}))
    return Counted(), inputs


@pytest.mark.parametrize("method", LINEAR)
def test_an_operator_without_a_backward_rule_is_refused_by_linear_bounds_alone(counted, method):
    first, inputs = counted
    model = nn.Sequential(nn.Linear(4, 4), first).eval()
    with pytest.raises(UnsupportedOperator, match=r"counted at node '1'.*ibp alone"):
        bound(model, random_box(1, 4, dtype=torch.float32), method=method)
    assert not inputs
    bound(model, random_box(1, 4, dtype=torch.float32))
    assert inputs


class Calls(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)  # the user's line


ARGUMENTS = {  # a module, the node that the message names
    "dropout module in training": (lambda: Calls(nn.Dropout().train()), "1.layer"),
    "pool module with indices": (lambda: Calls(nn.MaxPool2d(2, return_indices=True)), "1.layer"),
    "output tensor": (lambda: Lambda(lambda m, x: torch.cat([x, x], 1, out=torch.empty(2, 8, 3, 3))), "cat"),
    "circular": (lambda: Calls(nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular")), "1.layer"),
    "no momentum": (lambda: Calls(nn.BatchNorm2d(4, momentum=None).train()), "1.layer"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_refused_arguments_name_node_and_line(name):
    make, node = ARGUMENTS[name]
    with pytest.raises(UnsupportedOperator, match=rf"'{node}'.*test_refusals\.py"):
        trace(nn.Sequential(nn.Identity(), make()))


class TwoInputs(nn.Module):
    def forward(self, x, y=None):
        return x + 1


SIGNATURES = {
    "tuple": (Lambda(lambda module, x: (x + 1, x)), "output"),
    "dictionary": (Lambda(lambda module, x: {"logits": x + 1}), "output"),
    "nothing": (Lambda(lambda module, x: None), "output"),
    "constant": (Lambda(lambda module, x: module.constant, constant=torch.ones(3)), "output"),
    "two inputs": (TwoInputs(), "one input"),
    "control flow": (Lambda(lambda module, x: x if x.sum() > 0 else 2 * x), "control flow"),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_other_signatures_than_one_tensor_to_one_tensor_are_refused(name):
    model, message = SIGNATURES[name]
    with pytest.raises(Exception, match=message):
        trace(model)


def spectral_norm_in_training():
    """Reading such a weight changes it: the bounded function would not be the one that is left."""
    layer = parametrizations.spectral_norm(nn.Linear(2, 3)).eval()
    layer.parametrizations.train()
    return layer


@pytest.mark.parametrize("part", [nn.BatchNorm1d(2), nn.Dropout(), nn.Linear(2, 2), spectral_norm_in_training()])
def test_a_model_that_is_partly_in_training_mode_is_refused(part):
    model = nn.Sequential(nn.Identity().eval(), part if hasattr(part, "parametrizations") else part.train())
    model.training = False
    with pytest.raises(ValueError, match=r"eval|training"):
        bound(model, random_box(3, 2, dtype=torch.float32))


class Scaled(nn.Sequential):
    def __call__(self, x):
        return super().__call__(10 * x)


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_a_call_that_tracing_does_not_see_is_refused(method):
    with pytest.raises(UnsupportedOperator, match=r"define forward in the class"):
        bound(Scaled(nn.Linear(2, 3)).double().eval(), random_box(3, 2), method)


def test_a_branch_on_a_value_that_tracing_does_not_see_is_refused():
    """As code that takes tensors and arrays alike has it; no point of the box takes the other branch."""

    def forward(module, x):
        return x / 255 if isinstance(x, torch.Tensor) and x.max() > 1.5 else x

    box = Box(torch.full((1, 4), 0.5).double(), torch.ones(1, 4).double())
    with pytest.raises(UnsupportedOperator, match=r"reads values of its input.*test_refusals\.py, line"):
        bound(Lambda(forward).double().eval(), box, "ibp")


def test_what_depends_on_the_number_of_examples_is_refused():
    """Of one example this swaps two numbers, of more it does not; at the centre of this box both are alike."""

    def forward(module, x):
        count = x.size(0)
        return x - torch.cat([x[:, count:], x[:, :count]], 1)

    box = Box(torch.full((2, 2), 0.5).double(), torch.ones(2, 2).double())
    with pytest.raises(UnsupportedOperator, match=r"depends on other images"):
        bound(Lambda(forward).double().eval(), box, "ibp")


def test_outputs_of_fewer_digits_than_float32_are_refused():
    x = torch.rand(2, 4).half()
    with pytest.raises(UnsupportedOperator, match=r"outputs are torch\.float16; use float32 or float64"):
        bound(nn.Linear(4, 2).half().eval(), Box(x, torch.zeros_like(x)), "ibp")


def test_a_region_that_is_no_box_and_a_spec_of_another_batch_are_refused():
    for radius in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="radius"):
            bound(mlp().eval(), Box(torch.rand(2, 2), torch.full((2, 2), radius)))
    for shape in [(2, 1, 3), (4, 1, 3), (1, 1, 3), (1, 3)]:
        with pytest.raises(ValueError, match=r"spec must be \[3, K, N\]"):
            bound(mlp().double().eval(), random_box(3, 2), "crown", torch.zeros(shape, dtype=torch.float64))


def convolution():
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


def zeros(*shape, **options):
    return Box(torch.zeros(shape, **options), torch.zeros(shape, **options))


MISFITS = {  # model, region, spec, the error
    "vector without batch": (mlp, zeros(2), torch.zeros(2, 1, 3), r"float32 \[2\].*needs a batch dimension"),
    "image without batch": (convolution, zeros(1, 4, 4), torch.zeros(1, 1, 3), r"does not take \[1, 4, 4\]"),
    "size": (mlp, zeros(2, 5), torch.zeros(2, 1, 3), r"does not take \[1, 5\].*linear at node '0'.*1x5 and 2x"),
    "channels": (convolution, zeros(2, 3, 4, 4), torch.zeros(2, 1, 3), r"does not take \[1, 3, 4, 4\].*conv2d at node"),
    "radius": (mlp, Box(torch.zeros(2, 2), torch.zeros(1, 2)), torch.zeros(2, 1, 3), r"float32 \[2, 2\].*\[1, 2\]"),
    "radius that is a number": (mlp, Box(torch.zeros(2, 2), 0.1), torch.zeros(2, 1, 3), r"of one kind.*0\.1"),
    "integers": (mlp, zeros(2, 2, dtype=torch.int64), torch.zeros(2, 1, 3), "floating-point tensors"),
    "precision": (mlp, zeros(2, 2, dtype=torch.float64), torch.zeros(2, 1, 3), "must have one precision"),
    "device": (mlp, zeros(2, 2), torch.zeros(2, 1, 3, device="meta"), "on one device, found .'cpu', 'meta'"),
    "spec of other outputs": (mlp, zeros(2, 2), torch.zeros(2, 1, 4), r"\[2, K, 3\] for outputs of \[3\].*\[2, 1, 4\]"),
    "spec that is a list": (mlp, zeros(2, 2), [[1.0]], r"spec must be \[2, K, N\].*found \[\[1.0\]\]"),
    "sparse spec": (mlp, zeros(2, 2), torch.ones(2, 1, 3).to_sparse(), r"real numbers, found .* torch.sparse_coo"),
    "region that is a tensor": (
        mlp,
        torch.zeros(2, 2),
        torch.zeros(2, 1, 3),
        r"region must be a Box, found .*\[2, 2\]",
    ),
    "region without tensors": (mlp, Box(None, None), torch.zeros(2, 1, 3), "must have a center and a radius"),
    "function": (
        lambda: types.SimpleNamespace(eval=lambda: abs),
        zeros(2, 2),
        torch.zeros(2, 1, 3),
        "must be a Module",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_region_or_spec_that_does_not_fit_is_one_error_for_all_methods(name):
    make, region, spec, message = MISFITS[name]
    model = make().eval()
    for method in BOUNDS:
        with pytest.raises(ValueError, match=message):
            bound(model, region, method, spec)
    with pytest.raises(ValueError, match=message):
        verify(model, region, spec, branches=1)


LIMITS = [*({"seconds": each} for each in (float("nan"), -1, "1", True, None)), {"branches": -1}, {"branches": 1.5}]


@pytest.mark.parametrize("limits", LIMITS)
def test_limits_that_are_no_numbers_are_refused(limits):
    with pytest.raises(ValueError, match=r"must be None or a number of at least 0|needs a limit"):
        verify(mlp().eval(), zeros(2, 2), torch.zeros(2, 1, 3), **limits)


def test_linear_bounds_refuse_a_spec_that_their_precision_cannot_hold():
    spec = torch.full((2, 1, 2), 0.1, dtype=torch.float64)
    region = Box(torch.rand(2, 3), torch.full((2, 3), 0.1))
    for method in ("crown-ibp", "crown", "alpha-crown"):
        with pytest.raises(ValueError, match="spec must have numbers of"):
            bound(nn.Linear(3, 2).eval(), region, method, spec)


@pytest.mark.parametrize(
    "forward",
    [lambda m, x: conv2d(x, x), lambda m, x: apply_weight(x, x), lambda m, x: weight_gradient(torch.eye(4), x, x)],
)
def test_the_line_of_a_refusal_is_the_users_not_one_of_a_function_of_ours(forward):
    with pytest.raises(UnsupportedOperator, match=OF_THE_USER):
        bound(Lambda(forward).eval(), zeros(2, 4))


IN_TORCH = {  # forwards for which torch raises, of a float32 model at the latest in its float64 copy
    "statistics that need gradients": lambda m, x: F.batch_norm(x, m.p, m.p),
    "quantized constant": lambda m, x: x * torch.quantize_per_tensor(m.c, 0.1, 0, torch.qint8),
    "sparse constant": lambda m, x: x + m.c.to_sparse(),
    "weight of float32": lambda m, x: F.linear(x, torch.diag(m.c).float()),
    "statistics of float32": lambda m, x: F.batch_norm(x, m.c.float(), m.c.float()),
    "integer that torch cannot hold": lambda m, x: x * 10**30,
    "divisor that is a text": lambda m, x: x / "a",
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per")
@pytest.mark.parametrize("name", IN_TORCH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_torch_refuses_names_call_node_and_line(name, dtype):
    model = Lambda(IN_TORCH[name], c=torch.rand(4) + 1)
    model.p = nn.Parameter(torch.rand(4) + 1)
    with pytest.raises((UnsupportedOperator, ValueError), match=r"\w+ at node '\w+' .*test_refusals\.py, line \d+: "):
        verify(model.to(dtype).eval(), zeros(2, 4, dtype=dtype), torch.eye(4, dtype=dtype).expand(2, 4, 4), branches=1)


def test_a_model_that_float32_alone_can_compute_has_bounds_there():
    model = Lambda(IN_TORCH["weight of float32"], c=torch.rand(4) + 1).eval()
    bound(model, zeros(2, 4), "crown")
    with pytest.raises(UnsupportedOperator, match=r"proved in float64, where it fails: .*linear at node 'linear'"):
        verify(model, zeros(2, 4), torch.eye(4).expand(2, 4, 4), branches=1)
