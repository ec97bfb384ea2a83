"""Folding, saving and loading an equilibrium, and reading its W."""

import copy

import pytest
import torch
from equilibria import small_network
from torch import nn
from torch.nn.utils import parametrize

from cerdeq import LinfBall, bound
from cerdeq.equilibrium import FixedPoint, fold


@pytest.mark.parametrize(("kernel", "gain"), [(None, None), (3, 0.4)])
def test_fold_keeps_the_function_and_leaves_plain_weights(gain, kernel):
    model, size = small_network(kernel, 0.8, gain=gain)
    x = torch.rand(3, *size, dtype=torch.float64)
    with torch.no_grad():
        value, limits = model(x), bound(model, LinfBall(x, 0.1))
        fold(model)
        assert torch.equal(model(x), value)
        torch.testing.assert_close(bound(model, LinfBall(x, 0.1)), limits, rtol=0, atol=0)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert isinstance(model[0].recurrence.weight, nn.Parameter) and type(model[0].recurrence) is FixedPoint
    assert set(model.state_dict()) == {
        *("0.inject.weight", "0.inject.bias", "0.recurrence.weight", "2.weight", "2.bias"),
    }
    fold(model)
    assert torch.equal(model(x), value)


def test_fold_keeps_the_function_of_a_model_in_training_mode():
    """Reading W in training moves the Perron vectors; folding must not."""
    model, size = small_network(3, 0.8)
    x = torch.rand(3, *size, dtype=torch.float64)
    with torch.no_grad():
        model[0].recurrence.parametrizations.weight.original.normal_()  # the vectors are those of another kernel
        value = model(x)
        model.train()
        fold(model)
        assert torch.equal(model.eval()(x), value)


@pytest.mark.parametrize("folded", [False, True])
def test_saved_and_loaded_it_is_the_same_function(folded):
    model, size = small_network(3, 0.8, gain=0.4)
    other, _ = small_network(3, 0.8, gain=0.4)
    x = torch.rand(3, *size, dtype=torch.float64)
    if folded:
        fold(model)
        fold(other)
    with torch.no_grad():
        assert not torch.equal(model(x), other(x))
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(x), other(x))
        torch.testing.assert_close(bound(model, LinfBall(x, 0.1)), bound(other, LinfBall(x, 0.1)), rtol=0, atol=0)


def test_fold_finds_a_fixed_point_whoever_holds_it_and_leaves_other_parametrisations_alone():
    layer = small_network(3, 0.8)[0][0].recurrence
    model = nn.Sequential(layer, nn.utils.parametrizations.weight_norm(nn.Conv2d(layer.weight.shape[0], 2, 1)))
    fold(model)
    assert [parametrize.is_parametrized(module) for module in model] == [False, True]


def test_a_bare_fixed_point_is_refused_since_nothing_holds_it():
    layer = small_network(3, 0.8)[0][0].recurrence
    with pytest.raises(ValueError, match="without_parametrisation"):
        fold(layer)
    assert not parametrize.is_parametrized(layer.without_parametrisation())


def test_folding_a_copy_leaves_the_original_alone():
    """Copies share the class that torch makes for a parametrised module."""
    model, size = small_network(3, 0.8)
    x = torch.rand(2, *size, dtype=torch.float64)
    value = model(x)
    fold(copy.deepcopy(model))
    assert torch.equal(model(x), value) and parametrize.is_parametrized(model[0].recurrence)
