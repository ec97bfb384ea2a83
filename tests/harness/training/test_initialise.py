"""IBP-aware initialisation."""

import math

import pytest
import torch
from torch import nn

from baselines import build
from cerdeq.equilibrium.weights import PARAMETRISATIONS
from harness.training.initialise import initialise


def _relative_std(module: nn.Module) -> float:
    """Standard deviation of the weights over sqrt(2 pi) / fan-in."""
    return float(module.weight.detach().std()) * module.weight[0].numel() / math.sqrt(2 * math.pi)


def test_hidden_weights_have_the_published_deviation_and_the_classifier_keeps_its_own():
    model = build("cnn7", "digits", width=0.5)
    before = model.classifier.weight.detach().clone()
    initialise(model)
    hidden = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)][:-1]
    assert len(hidden) == 6
    for module in hidden:
        assert _relative_std(module) == pytest.approx(1, rel=0.1)
    assert torch.equal(model.classifier.weight, before)


def test_layers_after_a_residual_addition_get_half_the_weights():
    model = build("resnet9", "digits", width=0.5)
    initialise(model)
    halved = {
        name: _relative_std(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and name != "classifier"
    }
    after_addition = {"block2.conv1", "block2.shortcut.0", "block3.conv1", "linear"}
    assert after_addition < set(halved)
    for name, value in halved.items():
        assert value == pytest.approx(0.5 if name in after_addition else 1, rel=0.15), name


@pytest.mark.parametrize(("depth", "expected"), [(7, 1), (8, 0.5), (15, 0.5)])
def test_a_layer_that_is_applied_again_and_again_is_drawn_once(depth, expected):
    """And gets half the weights where it follows an addition, however often."""
    model = build("tied", "digits", width=0.5, depth=depth)
    torch.manual_seed(3)
    initialise(model)
    assert _relative_std(model.unrolled.recurrence) == pytest.approx(expected, rel=0.05)
    assert _relative_std(model.unrolled.inject[0]) == pytest.approx(1, rel=0.05)
    assert _relative_std(model.linear) == pytest.approx(0.5, rel=0.05), "it follows an addition"
    other = build("tied", "digits", width=0.5, depth=25)
    torch.manual_seed(3)
    initialise(other)
    assert torch.equal(other.linear.weight, model.linear.weight), "the same draws at every depth"


def test_an_equilibrium_keeps_its_recurrent_kernel():
    model = build("cerdeq", "digits", width=0.25)
    before = model.equilibrium.recurrence.parametrizations.weight.original.detach().clone()
    initialise(model)
    assert torch.equal(model.equilibrium.recurrence.parametrizations.weight.original, before)
    assert _relative_std(model.equilibrium.inject[0]) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize("name", ["cerdeq", "deqlate", "deq7"])
def test_a_twin_starts_from_the_same_weights(name, parametrisation):
    """Paired comparisons by seed are of the recurrence, not of two draws."""
    states = []
    for options in ({"parametrisation": parametrisation}, {"recurrent": False}):
        torch.manual_seed(7)
        network = build(name, "digits", 0.1, **options)
        initialise(network)
        states.append(network.state_dict())
    shared = {key.replace("equilibrium.0", "equilibrium.inject"): value for key, value in states[1].items()}
    assert all(torch.equal(value, states[0][key]) for key, value in shared.items())
