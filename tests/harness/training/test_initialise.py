"""IBP-aware initialisation."""

import math
import re
from functools import partial

import pytest
import torch
from torch import nn

from baselines import build
from cerdeq.equilibrium.weights import PARAMETRISATIONS
from harness.training.initialise import initialise


def initialised(name, width=0.5, seed=7, **options):
    torch.manual_seed(seed)
    model = build(name, "digits", width=width, **options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    initialise(model)
    return model, before


def relative_std(module: nn.Module) -> float:
    """Standard deviation of the weights over sqrt(2 pi) / fan-in."""
    return float(module.weight.detach().std()) * module.weight[0].numel() / math.sqrt(2 * math.pi)


def test_hidden_weights_have_the_published_deviation_and_the_classifier_keeps_its_own():
    model, before = initialised("cnn7")
    hidden = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)][:-1]
    assert len(hidden) == 6
    for module in hidden:
        assert relative_std(module) == pytest.approx(1, rel=0.1)
    assert torch.equal(model.classifier.weight, before["classifier.weight"])


def test_layers_after_a_residual_addition_get_half_the_weights():
    model, _ = initialised("resnet9")
    deviations = {
        name: relative_std(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and name != "classifier"
    }
    after_addition = {"block2.conv1", "block2.shortcut.0", "block3.conv1", "linear"}
    assert after_addition < set(deviations)
    for name, value in deviations.items():
        assert value == pytest.approx(0.5 if name in after_addition else 1, rel=0.15), name


@pytest.mark.parametrize(("depth", "expected"), [(7, 1), (15, 0.5)])
def test_a_layer_that_is_applied_several_times_is_drawn_once(depth, expected):
    """And gets half the weights where it follows an addition, however often."""
    model, _ = initialised("tied", depth=depth)
    assert relative_std(model.unrolled.recurrence) == pytest.approx(expected, rel=0.05)
    assert relative_std(model.unrolled.inject[0]) == pytest.approx(1, rel=0.05)
    assert relative_std(model.linear) == pytest.approx(0.5, rel=0.05), "it follows an addition"
    deeper, _ = initialised("tied", depth=25)
    assert torch.equal(deeper.linear.weight, model.linear.weight), "the same draws at every depth"


@pytest.mark.parametrize("name", ["cerdeq", "deqlate", "deq7", "deqscales", "deqsmall"])
def test_a_network_without_recurrence_starts_from_the_same_weights(name):
    """Paired comparisons by seed are of the recurrence, not of two draws. The recurrent kernel keeps its own draw."""
    explicit, _ = initialised(name, 0.1, recurrent=False)
    renamed = partial(re.sub, r"(equilibrium\d?).0", r"\1.inject")
    shared = {renamed(key): value for key, value in explicit.state_dict().items()}
    for parametrisation in PARAMETRISATIONS:
        network, before = initialised(name, 0.1, parametrisation=parametrisation)
        state = network.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in shared.items())
        recurrent = [key for key in state if "recurrence.parametrizations" in key]
        assert recurrent and all(torch.equal(state[key], before[key]) for key in recurrent)
