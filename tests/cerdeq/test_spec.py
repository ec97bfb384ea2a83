"""Margins and other linear functions of the outputs, merged into a last linear layer."""

import pytest
import torch
import torch.nn.functional as F
from cases import function, mlp
from oracles import Lambda, affine_extremes, assert_contains, dense_affine, points_of, random_box
from torch import nn

from cerdeq import Box, bound, margin_spec
from cerdeq.bounds import Context, Interval, propagate, trace


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


def test_merged_margins_are_never_looser_than_subtracted_intervals():
    model, box = mlp().double().eval(), random_box(6, 2)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    spec = margin_spec(labels, 3).double()
    lower, upper = bound(model, box)
    merged_lower, merged_upper = bound(model, box, spec=spec)
    subtracted = torch.einsum("bkn,bn->bk", spec.clamp(min=0), lower) + torch.einsum(
        "bkn,bn->bk", spec.clamp(max=0), upper
    )
    opposite = torch.einsum("bkn,bn->bk", spec.clamp(min=0), upper) + torch.einsum(
        "bkn,bn->bk", spec.clamp(max=0), lower
    )
    slack = 1e-12 * (1 + upper.abs().max())
    assert (merged_lower >= subtracted - slack).all() and (merged_upper <= opposite + slack).all()
    assert (merged_lower > subtracted + slack).any()


def shifted_network():
    model = Lambda(lambda module, x: module.inner(x) + 1)
    model.inner = nn.Linear(2, 3)
    return model


ENDINGS = {
    "relu": lambda: nn.Sequential(mlp(), nn.ReLU()),
    "shift": shifted_network,
    "norm": lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.BatchNorm1d(4)),
    "two linear": lambda: nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.Dropout()),
    "convolution": lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten()),
    "function": function(lambda x, w, b: F.linear(F.relu(x), w, b), w=(3, 2), b=(3,)),
    "leaky relu": lambda: nn.Sequential(nn.Linear(2, 4), nn.LeakyReLU(-0.5)),
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


def test_clean_margins_go_through_the_spec():
    model, x = mlp().double().eval(), torch.randn(4, 2, dtype=torch.float64)
    spec = margin_spec(torch.tensor([0, 1, 2, 1]), 3)
    result = propagate(trace(model), Interval(x + 1, torch.ones_like(x), x), Context(sound=False), spec)
    torch.testing.assert_close(result.clean, torch.einsum("bkn,bn->bk", spec.double(), model(x)))
