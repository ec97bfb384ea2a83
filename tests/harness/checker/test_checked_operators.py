"""The operators that the checker knows, in every way to call them; docs/soundness.md lists what it does not know."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES, IMAGE, SEQUENCE, Case, build_model, function
from oracles import Lambda
from torch import nn
from torch.nn.utils import parametrize

from cerdeq.operators.table import TABLE
from harness.checker.bounds.boxes import Box
from harness.checker.bounds.linear import lower_bounds
from harness.checker.bounds.maps import UnknownLayerError, move
from harness.checker.bounds.network import read_network
from harness.checker.bounds.operators import OPERATORS
from harness.checker.bounds.regions import tight_region

EPS, LABEL = 0.1, 1


def augmented(x, c):
    y = x - c
    y += x
    y -= c
    y /= c
    return y


def norm_without_bias():
    layer = nn.BatchNorm2d(4)
    layer.bias = None
    return nn.Sequential(layer)


NETWORKS = [
    Case("layers used twice", lambda: nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()] * 2), IMAGE),
    Case("in place", lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)), IMAGE),
    Case("augmented assignments", function(augmented, c=(4, 1, 1)), IMAGE),
    Case("no bias", norm_without_bias, IMAGE),
]

UNKNOWN = {
    "linear": {"function of a changed weight"},
    "add": {"functions"},
    "subtract": {"function", "function, constant first"},
    "concatenate": {"constant", "constants first"},
    "reshape": {"view, sizes"},
    **{name: {case.name for case in CASES[name]} for name in ("conv_transpose2d", "index_select", "parts", "part")},
    **{name: {case.name for case in CASES[name]} for name in ("sigmoid", "tanh", "sign")},
    "index": {"computed", "a mask"},
    "pad": {"a number", "channels"},
    "max_pool2d": {"without channels"},
}
"""The cases of each operator that the checker refuses."""


def network_around(case):
    """Return the case's model with a classifier behind it."""
    torch.manual_seed(0)
    model = build_model(case)
    features = model(torch.zeros(1, *case.shape).double()).flatten(1).shape[1]
    return nn.Sequential(model, nn.Flatten(), nn.Linear(features, 3)).double().eval().requires_grad_(False)


def margins_by_checker(model, x, radius):
    """Return lower and upper bounds of margins of images x over balls, or why the network is refused."""
    try:
        network = read_network(model)
        network.refuse_other_logits(model, x.numpy())
    except (UnknownLayerError, RuntimeError, ValueError) as error:  # RuntimeError, ValueError: shapes that do not fit
        return str(error)
    spec, ends = np.delete(np.eye(3)[LABEL] - np.eye(3), LABEL, 0), []
    for image in x.numpy():
        region = tight_region(network, Box(image[None], np.full_like(image[None], radius)))
        box = network.margins(region.values, np.array([LABEL]))
        low, high = np.split(lower_bounds(network, region, {len(network.steps): np.concatenate([spec, -spec])}, {}), 2)
        ends.append((np.maximum(low, box.lower[0]), np.minimum(-high, box.upper[0])))
    return tuple(torch.from_numpy(np.stack(side)) for side in zip(*ends, strict=True))


@pytest.mark.parametrize("name", [*CASES, "networks"])
def test_every_form_is_bounded_or_listed(name):
    for case in CASES.get(name, NETWORKS):
        model, x = network_around(case), torch.rand(2, *case.shape).double()
        result = margins_by_checker(model, x, EPS)
        assert isinstance(result, str) == (case.name in UNKNOWN.get(name, ())), (case.name, result)
        if isinstance(result, str):
            assert result.startswith("harness.recheck has no rule for "), result
            continue
        lower, upper = result
        points = x + EPS * torch.randn(50, *x.shape).double().sign()
        logits = model(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        margins = logits[..., 1:2] - logits[..., [0, 2]]
        assert (lower <= margins + 1e-9).all() and (margins <= upper + 1e-9).all(), case.name
        lower, upper = margins_by_checker(model, x, 0.0)
        np.testing.assert_allclose(lower, upper, atol=1e-8)


def test_the_documentation_lists_what_is_unknown():
    text = (Path(__file__).parents[3] / "docs/soundness.md").read_text()
    lines = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.+) \|$", text, re.MULTILINE)
    rows = [(name, forms) for names, forms in lines for name in re.findall(r"\w+", names)]
    assert dict(rows).keys() == UNKNOWN.keys()
    assert {record.name for record in TABLE} - OPERATORS.keys() == {name for name, forms in rows if forms == "all"}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 2 * x,
        lambda x: x + 1,
        lambda x: x[:, 1:] - 1,
        lambda x: x.abs(),
        lambda x: 2 * x[:, :2],
        torch.ones_like,
        lambda x: x.flip(0),
        lambda x: x[:1],
        lambda x: x[3:],
        lambda x: x.sum(),
        lambda x: x[:, : len(x)],
        lambda x: x.view(2, -1),
        lambda x: torch.cat([x[:, :1], x[:1, 1:].expand(len(x), -1)], 1),
    ],
)
def test_what_changes_numbers_or_mixes_images_is_no_move(function):
    with pytest.raises(UnknownLayerError, match=r"it (of values|that depends)"):
        move(function, "it").back(np.ones((1, 4)), [(4,)])


@pytest.mark.parametrize("last", ["slice", "pad", "transpose"])
def test_moves_by_the_number_of_images_are_refused(last):
    """Of two images the slices below swap nothing, of one image they swap its two numbers."""

    def forward(x):
        count = x.size(0)
        parts = {
            "slice": lambda: torch.cat([x[:, count:], x[:, :count]], 1),
            "pad": lambda: nn.functional.pad(x, (0, count))[:, :2],
            "transpose": lambda: x[:, None, None].transpose(1, count),
        }
        return parts[last]().flatten(1)

    with pytest.raises(UnknownLayerError, match=r"(getitem|pad|transpose) with .* a size that is computed"):
        read_network(nn.Sequential(function(forward)(), nn.Linear(2, 2)).eval())


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def with_changed_size(module, x):
    module.pool.kernel_size = module.pool.stride = 2
    y = module.pool(x)
    module.pool.kernel_size = module.pool.stride = 4
    return torch.cat([y.flatten(1), module.pool(x).flatten(1)], 1)


def changing_its_size():
    model = Lambda(with_changed_size)
    model.pool = nn.AvgPool2d(2)
    return model


def another_forward(model):
    plain = model.forward
    model.forward = lambda x: 2 * plain(x)


def tenfold_tensor(x):
    return 10 * x if isinstance(x, torch.Tensor) else x


MISREAD = {  # the case, what is done to the network, and the message; what tracing refuses is in tests/cerdeq
    "training": (Case("", lambda: nn.Sequential(nn.BatchNorm2d(4)), IMAGE), lambda m: m[0].train(), "in training mode"),
    "parametrised": (
        Case("", lambda: nn.Sequential(nn.Conv2d(4, 2, 3)), IMAGE),
        lambda m: parametrize.register_parametrization(m[0][0][0], "weight", Doubled()).eval(), "ParametrizedConv2d"),
    "precision": (
        Case("", function(lambda x, c: x - float(c.dtype == torch.float32), c=(1,)), IMAGE), None, "float32"),
    "type": (Case("", function(tenfold_tensor), IMAGE), None, "see, by mul"),
    "size": (Case("", changing_its_size, (4, 8, 8)), None, "does not take"),
    "computed constant": (Case("", function(lambda x, c: x + 2 * c, c=(4, 1, 1)), IMAGE), None, "network computes"),
    "constant that broadcasts": (Case("", function(lambda x, c: x + c, c=(3, 1, 1)), (1, 4, 4)), None, "of shape"),
    "batch": (Case("", function(lambda x: x.reshape(-1, 9)), SEQUENCE), None, "mixes images"),
    "number of images": (Case("", function(lambda x: x * x.shape[0]), IMAGE), None, "BATCH as an operand"),
    "own forward": (Case("", lambda: nn.Sequential(nn.ReLU()), IMAGE), another_forward, "define forward in the class"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISREAD)
def test_networks_that_are_easily_read_as_others_are_refused(name):
    case, change, message = MISREAD[name]
    model = network_around(case)
    if change:
        change(model)
    assert message in str(margins_by_checker(model, torch.rand(2, *case.shape).double(), EPS))


def test_a_global_hook_is_refused():
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: 2 * output)
    try:
        assert "global forward hooks" in str(margins_by_checker(nn.Linear(2, 3).eval(), torch.rand(2, 2), EPS))
    finally:
        hook.remove()


class SeveralUnknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.add(x, x, alpha=2)
        return self.classifier(x.sign().flatten(1))


def test_the_message_names_all_unknown_steps_and_their_lines():
    with pytest.raises(UnknownLayerError) as refused:
        read_network(SeveralUnknown().eval())
    message = str(refused.value)
    first, second = message.split("; ")
    assert first.startswith("harness.recheck has no rule for alpha=2 at node 'add' (") and "alpha=2)" in first
    assert second.startswith("sign at node 'sign' (") and f"{Path(__file__).name}, line " in second


@pytest.mark.parametrize("number", [True, 2**60 + 1])
def test_numbers_that_are_not_floats_are_refused(number):
    model = nn.Sequential(function(lambda x: x * number)(), nn.Linear(5, 3)).eval()
    with pytest.raises(UnknownLayerError, match="as an operand"):
        read_network(model)
