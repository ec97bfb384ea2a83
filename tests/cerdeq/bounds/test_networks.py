"""Bounds of networks: parametrised layers, margins and other specs, the table of bounds."""

import pytest
import torch
import torch.nn.functional as F
from cases import function, mlp
from oracles import Lambda, affine_extremes, assert_contains, dense_affine, points_of, random_box
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from cerdeq import Box, bound, margin_spec
from cerdeq.bounds import Interval, lower_bounds, trace


def test_a_monotone_network_is_bounded_exactly():
    """Non-negative weights: interval bounds are the values at two corners, so that loose rules would show."""
    model = mlp().double().eval()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.abs_()
        box = Box(torch.rand(3, 2, dtype=torch.float64), torch.full((3, 2), 0.3, dtype=torch.float64))
        lower, upper = bound(model, box)
        torch.testing.assert_close(lower, model(box.lower), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(upper, model(box.upper), rtol=1e-12, atol=1e-12)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight + 0.1


PARAMETRISED = {
    "custom": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    "custom bias": lambda layer: parametrize.register_parametrization(layer, "bias", Doubled()),
    "spectral norm": parametrizations.spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("name", PARAMETRISED)
def test_parametrised_layers_are_bounded_as_plain_ones(name):
    """The layer's class is torch's own subclass; its weight is what the parametrisation says now."""
    linear, convolution = nn.Linear(18, 3).double(), nn.Conv2d(1, 2, 2).double()
    model = nn.Sequential(PARAMETRISED[name](convolution), nn.ReLU(), nn.Flatten(), PARAMETRISED[name](linear)).eval()
    box = random_box(4, 1, 4, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.1)
        plain = [nn.Conv2d(1, 2, 2).double(), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3).double()]
        for number, layer in ((0, convolution), (3, linear)):
            plain[number].weight.copy_(layer.weight)
            plain[number].bias.copy_(layer.bias)
        lower, upper = bound(model, box)
        assert_contains(lower, upper, torch.stack([model(x) for x in points_of(box, 64)]))
        expected = bound(nn.Sequential(*plain).eval(), box)
    torch.testing.assert_close((lower, upper), expected)


def general_spec(batch, rows, outputs):
    return torch.randn(batch, rows, outputs, dtype=torch.float64)


def test_margin_spec_is_the_label_over_every_other_class():
    logits = torch.randn(5, 4)
    labels = torch.tensor([0, 3, 1, 2, 0])
    margins = torch.einsum("bkn,bn->bk", margin_spec(labels, 4), logits)
    for example, label in enumerate(labels.tolist()):
        others = [k for k in range(4) if k != label]
        torch.testing.assert_close(margins[example], logits[example, label] - logits[example, others])


def test_labels_out_of_range_are_refused():
    for labels in ([4], [-1]):
        with pytest.raises((ValueError, IndexError)):
            margin_spec(torch.tensor(labels), 4)
    with pytest.raises(ValueError, match="classes must be at least 2, found 1"):
        margin_spec(torch.tensor([0]), 1)
    for labels in (3, [3], torch.tensor(3), torch.ones(4, dtype=torch.uint8), torch.ones(4) > 0, torch.ones(4)):
        with pytest.raises(ValueError, match=r"labels must be an int64 or int32 tensor \[B\], found "):
            margin_spec(labels, 4)
    assert torch.equal(margin_spec(torch.tensor([1, 3], dtype=torch.int32), 4), margin_spec(torch.tensor([1, 3]), 4))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["margin", "general"])
def test_merged_spec_of_one_linear_layer_is_the_exact_minimum(kind, bias):
    model, box = nn.Sequential(nn.Linear(6, 4, bias=bias)).double().eval(), random_box(5, 6)
    spec = general_spec(5, 7, 4) if kind == "general" else margin_spec(torch.tensor([0, 1, 2, 3, 3]), 4).double()
    lower, upper = bound(model, box, spec=spec)
    matrix, offset = dense_affine(model, (6,))
    for example in range(5):
        one = Box(box.center[example : example + 1], box.radius[example : example + 1])
        exact = affine_extremes(spec[example] @ matrix, spec[example] @ offset, one)
        torch.testing.assert_close(lower[example], exact[0][0], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(upper[example], exact[1][0], rtol=1e-11, atol=1e-11)


def shifted_network():
    model = Lambda(lambda module, x: module.inner(x) + 1)
    model.inner = nn.Linear(2, 3)
    return model


ENDINGS = {
    "relu": lambda: nn.Sequential(mlp(), nn.ReLU()),
    "shift": shifted_network,
    "norm": lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.BatchNorm1d(4)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten()),
    "function": function(lambda x, w, b: F.linear(F.relu(x), w, b), w=(3, 2), b=(3,)),
    "concatenation": function(lambda x, w: torch.cat([F.linear(x, w), x], 1), w=(2, 2)),
    "view": function(lambda x, w: F.linear(x.view(x.size(0), 2, 1), w).view(x.size(0), -1), w=(2, 1)),
    "dropout function": function(lambda x, w: F.dropout(F.linear(x, w), training=False), w=(3, 2)),
    "negation": function(lambda x, w: -F.linear(x, w), w=(3, 2)),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_spec_may_follow_any_ending(ending):
    kind = "general" if len(ending) % 2 else "margin"
    model = ENDINGS[ending]().double().eval()
    box = random_box(4, 2, 1, 1) if ending == "convolution" else random_box(4, 2)
    with torch.no_grad():
        values = torch.stack([model(x) for x in points_of(box, 200)])
        outputs = values.shape[-1]
        labels = torch.tensor([0, 1, 2, 0])
        spec = general_spec(4, 5, outputs) if kind == "general" else margin_spec(labels, outputs).double()
        lower, upper = bound(model, box, spec=spec)
    assert lower.shape == upper.shape == (4, spec.shape[1])
    assert_contains(lower, upper, torch.einsum("bkn,sbn->sbk", spec, values))


def test_an_unknown_name_is_refused():
    model, box = mlp().double().eval(), random_box(1, 2)
    for name in ("IBP", None):
        with pytest.raises(ValueError, match=r"unknown method .*; methods: ibp, crown-ibp, crown, alpha-crown"):
            bound(model, box, method=name)
    with pytest.raises(ValueError, match=r"unknown method"):
        lower_bounds(trace(model), Interval(box.center, box.radius), torch.ones(1, 1, 3), "IBP")
