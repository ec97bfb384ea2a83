"""What is refused, how, and that it is refused before anything is computed."""

import pytest
import torch
import torch.nn.functional as F
from cases import mlp
from oracles import Lambda, random_box
from torch import nn
from torch.nn.utils import parametrizations

from cerdeq import bound
from cerdeq.bounds import Operator, UnsupportedOperator, register, trace


def user_model():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            y = self.layer(x)
            return torch.sigmoid(y)  # the user's line

    return Mine().eval()


def test_an_unsupported_operator_names_node_and_line():
    with pytest.raises(UnsupportedOperator) as error:
        bound(user_model(), random_box(2, 4, dtype=torch.float32))
    message = str(error.value)
    assert "sigmoid" in message
    assert "test_refusals.py" in message and "the user's line" in message, message


def test_an_unsupported_module_names_its_class_and_place():
    with pytest.raises(UnsupportedOperator, match=r"Sigmoid.*'1'") as error:
        bound(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()).eval(), random_box(2, 4, dtype=torch.float32))
    assert "graph.py" not in str(error.value), "a Sequential has no line of the user's, and cerdeq's own is not one"


UNSUPPORTED = {
    "function": lambda x: torch.exp(x),
    "method": lambda x: x.exp(),
    "max pool": lambda x: F.max_pool2d(x, 1),
    "indexing": lambda x: x[:, 0],
    "product": lambda x: x * F.relu(x),
    "product of one": lambda x: torch.mul(x, x),
    "quotient": lambda x: x / (x + 1),
    "reciprocal": lambda x: 1 / x,
    "weights from data": lambda x: F.linear(x, x),
    "kernel from data": lambda x: F.conv2d(x, x),
    "softmax": lambda x: F.softmax(x, dim=1),
    "rounding": lambda x: torch.div(x, 2.0, rounding_mode="floor"),
    "dropout function": lambda x: F.dropout(x, 0.5),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_rule_is_refused_by_tracing(name):
    """And so before anything is computed."""
    with pytest.raises(UnsupportedOperator):
        trace(Lambda(lambda module, x: UNSUPPORTED[name](x)).eval())


def test_nothing_is_computed_before_a_refusal(own_operators):
    ran = []

    def rule(ctx, x):
        ran.append(x)
        return x

    class Seen(nn.Module):
        def forward(self, x):
            return x

    register(Operator("seen", rule, (), {Seen: lambda module: {}}))
    with pytest.raises(UnsupportedOperator):
        bound(nn.Sequential(Seen(), nn.Tanh()).eval(), random_box(1, 4))
    assert not ran


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_modes_are_refused(mode):
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode)).eval()
    with pytest.raises(UnsupportedOperator, match=mode):
        trace(model)


def test_batch_norm_without_momentum_is_refused():
    with pytest.raises(UnsupportedOperator, match="momentum"):
        trace(nn.Sequential(nn.BatchNorm1d(4, momentum=None)).train())


@pytest.mark.parametrize(
    "forward",
    [
        lambda module, x: (x + 1, x),
        lambda module, x: [x + 1],
        lambda module, x: {"logits": x + 1},
        lambda module, x: None,
        lambda module, x: module.constant,
    ],
    ids=["tuple", "list", "dictionary", "nothing", "constant"],
)
def test_other_outputs_than_one_tensor_are_refused(forward):
    with pytest.raises(UnsupportedOperator, match="output"):
        trace(Lambda(forward, constant=torch.ones(3)))


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class OptionalInput(nn.Module):
    def forward(self, x, y=None):
        return x + 1


@pytest.mark.parametrize("make", [TwoInputs, OptionalInput])
def test_several_inputs_are_refused(make):
    with pytest.raises(UnsupportedOperator, match="one input"):
        trace(make())


def test_control_flow_on_the_input_is_refused():
    with pytest.raises(Exception, match="control flow"):
        trace(Lambda(lambda module, x: x if x.sum() > 0 else 2 * x))


@pytest.mark.parametrize("method", ["IBP", "crown-lbp", "", None])
def test_an_unknown_method_is_refused(method):
    with pytest.raises(ValueError, match=r"unknown method.*ibp"):
        bound(mlp().eval(), random_box(1, 2, dtype=torch.float32), method=method)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        bound(mlp().train(), random_box(1, 2, dtype=torch.float32))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2), nn.Dropout()], ids=["batch norm", "dropout"])
def test_a_part_in_training_mode_is_refused(layer):
    model = nn.Sequential(layer, nn.Linear(2, 2)).eval()
    layer.train()
    with pytest.raises((ValueError, UnsupportedOperator)):
        bound(model, random_box(3, 2, dtype=torch.float32))


def test_a_parametrisation_in_training_mode_is_refused():
    """Reading such a weight changes it: the function that is bounded would not be the one that is left."""
    layer = parametrizations.spectral_norm(nn.Linear(4, 3))
    model = nn.Sequential(layer).eval()
    layer.parametrizations.train()
    with pytest.raises(ValueError, match=r"eval|training"):
        bound(model, random_box(2, 4, dtype=torch.float32))
