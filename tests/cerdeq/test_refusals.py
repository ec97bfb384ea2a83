"""What is refused, how, and that it is refused before anything is computed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import assert_sound, mlp
from graphs import LINEAR
from oracles import Lambda, assert_contains, points_of, random_box
from torch import nn
from torch.nn.utils import parametrizations

from cerdeq import Box, bound
from cerdeq.bounds import BOUNDS, Operator, UnsupportedOperator, register, trace


def random_pool():
    """As random numbers go, an operator that will never have a rule."""
    return nn.FractionalMaxPool2d(2, output_size=2)


def user_model():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            y = self.layer(x)
            return torch.bernoulli(y)  # the user's line

    return Mine().eval()


def test_an_unsupported_operator_names_node_and_line():
    with pytest.raises(UnsupportedOperator) as error:
        bound(user_model(), random_box(2, 4, dtype=torch.float32))
    message = str(error.value)
    assert "bernoulli" in message
    assert "test_refusals.py" in message and "the user's line" in message, message


def test_an_unsupported_operator_in_a_method_of_the_user_names_the_line():
    class Parts(nn.Module):
        def forward(self, x):
            return self.head(x)

        def head(self, x):
            return torch.bernoulli(x)  # the user's line

    with pytest.raises(UnsupportedOperator, match=r"test_refusals.py.*the user's line"):
        trace(Parts().eval())


def test_an_unsupported_module_names_its_class_and_place():
    with pytest.raises(UnsupportedOperator, match=r"FractionalMaxPool2d.*'1'") as error:
        bound(nn.Sequential(nn.Conv2d(1, 1, 1), random_pool()).eval(), random_box(2, 1, 4, 4, dtype=torch.float32))
    assert "graph.py" not in str(error.value), "a Sequential has no line of the user's, and cerdeq's own is not one"


UNSUPPORTED = {
    "function": lambda x: torch.bernoulli(x),
    "method": lambda x: x.bernoulli(),
    "max pool of one dimension": lambda x: F.max_pool1d(x, 1),
    "max pool with indices": lambda x: F.max_pool2d(x, 1, return_indices=True)[0],
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 1),
    "concatenation of data and a product": lambda x: torch.cat([x, x * x], 1),
    "stack": lambda x: torch.stack([x, x]),
    "concatenation into a given tensor": lambda x: torch.cat([x, x], 1, out=torch.empty(2, 8)),
    "slope from data": lambda x: F.leaky_relu(x, x),
    "negative slope of each channel": lambda x: F.prelu(x, torch.ones(1)),
    "random slope": lambda x: F.rrelu(x, training=False),
    "shape from data": lambda x: x.view_as(x),
    "count": lambda x: x * x.numel(),
    "view of another type": lambda x: x.view(torch.int64),
    "new constant": lambda x: x + x.new_zeros(4),
    "dropout of every channel": lambda x: F.dropout2d(x),
    "dropout that may be on": lambda x: F.dropout(x, 0.5, True),
    "alpha dropout": lambda x: F.alpha_dropout(x),
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


@pytest.fixture
def seen(own_operators):
    """A module that does nothing, and the list of what its rule was run on."""
    ran = []

    def rule(ctx, x):
        ran.append(x)
        return x

    class Seen(nn.Module):
        def forward(self, x):
            return x

    register(Operator("seen", rule, (), {Seen: lambda module: {}}))
    return Seen(), ran


def test_nothing_is_computed_before_a_refusal(seen):
    first, ran = seen
    with pytest.raises(UnsupportedOperator):
        bound(nn.Sequential(first, random_pool()).eval(), random_box(1, 1, 4, 4))
    assert not ran


@pytest.mark.parametrize("method", LINEAR)
def test_an_operator_without_a_backward_rule_is_refused_by_linear_bounds_alone(seen, method):
    first, ran = seen
    model = nn.Sequential(nn.Linear(4, 4), first).eval()
    with pytest.raises(UnsupportedOperator, match=r"seen at node '1'.*ibp alone"):
        bound(model, random_box(1, 4, dtype=torch.float32), method=method)
    assert not ran
    bound(model, random_box(1, 4, dtype=torch.float32))
    assert ran


class Calls(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)  # the user's line


class DropoutOn(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)  # the user's line


class DropoutOfChannelsOn(nn.Module):
    def forward(self, x):
        return F.dropout2d(x, training=True)  # the user's line


class PoolWithIndices(nn.Module):
    def forward(self, x):
        values, _ = F.max_pool2d(x, 2, return_indices=True)  # the user's line
        return values


class PositionalPoolWithIndices(nn.Module):
    def forward(self, x):
        return torch.cat(F.max_pool2d(x, 2, 2, 0, 1, False, True)[:1], 1)  # the user's line


class IntoGiven(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 1, out=torch.empty(2, 8, 3, 3))  # the user's line


REFUSED_ARGUMENTS = {
    "dropout": (DropoutOn, "dropout"),
    "dropout of channels": (DropoutOfChannelsOn, "dropout2d"),
    "dropout module in training": (lambda: Calls(nn.Dropout().train()), "1.layer"),
    "dropout of channels in training": (lambda: Calls(nn.Dropout2d().train()), "1.layer"),
    "pool with indices": (PoolWithIndices, "max_pool2d_with_indices"),
    "positional": (PositionalPoolWithIndices, "max_pool2d_with_indices"),
    "pool module with indices": (lambda: Calls(nn.MaxPool2d(2, return_indices=True)), "1.layer"),
    "given tensor": (IntoGiven, "cat"),
    "circular": (lambda: Calls(nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular")), "1.layer"),
    "reflect": (lambda: Calls(nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect")), "1.layer"),
    "replicate": (lambda: Calls(nn.Conv2d(4, 2, 3, padding=1, padding_mode="replicate")), "1.layer"),
}


@pytest.mark.parametrize("name", REFUSED_ARGUMENTS)
def test_refused_arguments_name_node_and_line_before_anything_is_computed(name, seen):
    make, node = REFUSED_ARGUMENTS[name]
    first, ran = seen
    model, box = nn.Sequential(first, make()), random_box(2, 4, 3, 3, dtype=torch.float32)
    with pytest.raises(UnsupportedOperator) as error:
        trace(model)
    message = str(error.value)
    assert f"'{node}'" in message and "test_refusals.py" in message and "the user's line" in message, message
    if "in training" not in name:  # which `bound` refuses for that alone
        with pytest.raises(UnsupportedOperator):
            bound(model.eval(), box)
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


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        bound(mlp().train(), random_box(1, 2, dtype=torch.float32))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2), nn.Dropout()], ids=["batch norm", "dropout"])
def test_a_part_in_training_mode_is_refused(layer):
    model = nn.Sequential(layer, nn.Linear(2, 2)).eval()
    layer.train()
    with pytest.raises(ValueError, match="eval"):
        bound(model, random_box(3, 2, dtype=torch.float32))


def test_a_parametrisation_in_training_mode_is_refused():
    """Reading such a weight changes it: the function that is bounded would not be the one that is left."""
    layer = parametrizations.spectral_norm(nn.Linear(4, 3))
    model = nn.Sequential(layer).eval()
    layer.parametrizations.train()
    with pytest.raises(ValueError, match=r"eval|training"):
        bound(model, random_box(2, 4, dtype=torch.float32))


MIXED = {
    "product with a constant of more dimensions": lambda x: F.relu(x * torch.tensor([[[-1.0]], [[2.0]]])),
    "quotient by a constant of more dimensions": lambda x: F.relu(x / torch.tensor([[[-1.0]], [[2.0]]])),
    "sum of values of different dimensions": lambda x: F.relu(x.view(x.size(0), 1, 4) + x),
    "concatenation of batches": lambda x: torch.cat([x, x + 1], 0),
    "relu of concatenated batches": lambda x: F.relu(torch.cat([x, -x])),
    "the batch as one vector": lambda x: F.relu(x.reshape(1, -1)),
    "more examples": lambda x: x.reshape(-1, 2),
    "a flattened batch": lambda x: x.view(x.size(0), 2, 2).flatten(0, 1),
    "everything flattened": lambda x: F.relu(x.flatten()),
}
ALONE = {"sum of values of different dimensions", "the batch as one vector"}  # of one example, still a function of it


@pytest.mark.parametrize("examples", [1, 2, 3])
@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("name", MIXED)
def test_values_that_mix_the_examples_of_a_batch_are_refused(name, method, examples):
    model, box = Lambda(lambda module, x: MIXED[name](x)), random_box(examples, 4)
    if method == "ibp" and examples == 1 and name in ALONE:
        assert_sound(model, box)
        return
    message = r"depends on the others|mixes a batch's examples|one number an example"
    with pytest.raises(UnsupportedOperator, match=message):
        bound(model.double().eval(), box, method)


# ---------------------------------------------------------------------------------------------------------------------
# Functions that torch.fx does not see as they are


def patched():
    model = mlp()
    inner = model.forward
    model.forward = lambda x: 10 * inner(x) + 5
    return model


class Scaled(nn.Sequential):
    def __call__(self, x):
        return super().__call__(10 * x)


UNSEEN = {
    "a patched forward": patched,
    "a call of its own": lambda: Scaled(nn.Linear(2, 3)),
    "a branch on the type": lambda: Lambda(lambda m, x: F.relu(10 * x if isinstance(x, torch.Tensor) else x)),
    "torch.is_tensor": lambda: Lambda(lambda m, x: F.relu(x + 1 if torch.is_tensor(x) else x)),
    "the number of examples": lambda: Lambda(lambda m, x: F.relu(x) * x.shape[0]),
}


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("name", UNSEEN)
def test_a_function_that_tracing_does_not_see_is_refused(name, method):
    model = UNSEEN[name]().double().eval()
    with pytest.raises(UnsupportedOperator, match=r"was replaced|saw another function|depends on the others"):
        bound(model, random_box(3, 2), method)


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("model", [nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)], ids=lambda m: type(m).__name__)
def test_a_layer_alone_is_a_model(model, method):
    box = random_box(4, 3)
    lower, upper = bound(copy.deepcopy(model).double().eval(), box, method)
    with torch.no_grad():
        assert_contains(lower, upper, torch.stack([model.double().eval()(x) for x in points_of(box, 64)]))


@pytest.mark.parametrize("method", BOUNDS)
def test_overflow_is_infinity_by_every_method(method):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).eval()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1e25)
    lower, upper = bound(model, Box(torch.ones(1, 2), torch.ones(1, 2)), method)
    assert (lower == -torch.inf).all() and (upper == torch.inf).all()


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("shape", [(2, 1, 3), (4, 1, 3), (1, 1, 3), (1, 3)])
def test_a_spec_of_another_batch_is_refused(shape, method):
    with pytest.raises(ValueError, match=r"spec must be \[3, K, N\]"):
        bound(mlp().double().eval(), random_box(3, 2), method, torch.zeros(shape, dtype=torch.float64))
