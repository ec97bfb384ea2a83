"""Tracing: a program computes what the module computes; in-place operations are followed or refused."""

import pytest
import torch
import torch.nn.functional as F
from cases import assert_sound, function
from oracles import Lambda, assert_contains, points_of, random_box
from torch import nn

from cerdeq import bound
from cerdeq.bounds import Context, Interval, UnsupportedOperator, propagate, trace


class Rescaled(nn.Linear):
    """A layer of somebody's own: it is a Linear, and does something else."""

    def forward(self, x):
        return 3 * super().forward(x) + 1


class Standardised(nn.Conv2d):
    """Weight standardisation, as in BiT, by the method that torch's own forward calls."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - 0.5 * weight.abs(), bias)


class LeakyAtHeart(nn.ReLU):
    def forward(self, x):
        return F.relu(x) - 0.1 * F.relu(-1 * x)


def test_a_subclass_with_its_own_forward_is_not_treated_as_its_base():
    for layer in (Rescaled(4, 3), LeakyAtHeart()):
        assert_sound(nn.Sequential(nn.Linear(4, 4), layer), random_box(3, 4))
    assert_sound(nn.Sequential(Standardised(2, 3, 2)), random_box(2, 2, 4, 4))


def test_a_forward_replaced_on_the_instance_is_refused():
    model = nn.Sequential(nn.Linear(4, 3))
    plain = model[0].forward
    model[0].forward = lambda x: plain(x) + 7
    with pytest.raises(UnsupportedOperator, match="no bound rule for Linear at node '0'"):
        bound(model.double().eval(), random_box(3, 4))


def test_a_hook_that_changes_a_value_is_refused():
    for register in (nn.Module.register_forward_hook, nn.Module.register_forward_pre_hook):
        model = nn.Sequential(nn.Linear(4, 3)).double().eval()
        register(model[0], lambda *arguments: None)
        with pytest.raises(UnsupportedOperator, match="module '0' has forward hooks"):
            bound(model, random_box(3, 4))


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(4, dtype=torch.float64))

    def forward(self, x):
        return x * (self.scale * 2)


def constant_twice(module, x):
    """A tensor made on the way, used twice."""
    c = torch.full((4,), 2.0, dtype=torch.float64)
    return x * c + c


def test_constants_made_in_forward_are_kept_and_leave_the_module_alone():
    model, box = Lambda(constant_twice).eval(), random_box(2, 4)
    lower, upper = bound(model, box)
    assert_contains(lower, upper, torch.stack([model(x) for x in points_of(box, 20)]))
    assert not [name for name in vars(model) if name.startswith("_tensor_constant")]


def test_a_program_reads_buffers_when_it_runs():
    """Programs are traced once and run many times: what a buffer gives must not be frozen at tracing."""
    model, x = Buffered().eval(), torch.randn(2, 4, dtype=torch.float64)
    program = trace(model)
    model.scale.fill_(5)
    result = propagate(program, Interval(x, torch.zeros_like(x)), Context(sound=True))
    torch.testing.assert_close(result.center, model(x))


def test_every_use_of_a_shared_relu_is_recorded():
    """Regularisers and widths read the pre-activations; torchvision's blocks use one ReLU module twice."""
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu).eval()
    box, ctx = random_box(2, 4, dtype=torch.float32), Context(sound=False)
    propagate(trace(model), Interval(box.center, box.radius), ctx)
    assert len(ctx.preactivations) == 2


def test_arguments_may_be_given_by_name():
    """Torch's own names of the first argument; a module called by name."""
    for forward in (
        lambda m, x: F.relu(input=x),
        lambda m, x: torch.flatten(input=x, start_dim=1),
        lambda m, x: F.linear(input=x, weight=m.w),
        lambda m, x: torch.add(input=x, other=1.0),
    ):
        assert_sound(Lambda(forward, w=torch.randn(3, 4)), random_box(2, 4))

    by_name = Lambda(lambda module, x: module.layer(input=x))
    by_name.layer = nn.Linear(4, 3)
    assert_sound(by_name, random_box(2, 4))


def unpacked(x):
    batch, channels, width = x.shape
    return x.view(batch, channels * width)


SHAPE_QUERIES = {
    "unpacked": unpacked,
    "size": lambda x: x.view(x.size(0), -1),
    "slice": lambda x: torch.reshape(x, x.shape[:1] + (12,)),  # noqa: RUF005
    "dim": lambda x: torch.flatten(x, x.dim() - 2),
    "constant of the batch": lambda x: x.flatten(1) + torch.ones(12).to(x.dtype).view(1, x.size(1) * 4),
    "scale": lambda x: x.flatten(1) * x.size(1) / x.shape[2],
    "of a value on the way": lambda x: (2 * x).view((x + 1).size(0), -1),
}


def test_shapes_are_read_when_the_program_runs():
    """A program is traced once and run on batches of any size."""
    for query in SHAPE_QUERIES.values():
        model = Lambda(lambda module, x, query=query: query(x)).eval()
        program = trace(model)
        for batch in (1, 2, 5):
            box = random_box(batch, 3, 4)
            result = propagate(program, Interval(box.center, box.radius), Context(sound=True)).box
            assert_contains(result.lower, result.upper, torch.stack([model(x) for x in points_of(box, 32)]))


def test_the_usual_in_place_residual_is_supported():
    """As in torchvision: one in-place ReLU used twice, and an in-place sum; nothing is read after its change."""

    def forward(module, x):
        out = module.two(module.relu(module.one(x)))
        out += x
        return module.relu(out)

    block = Lambda(forward)
    block.one, block.two, block.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)
    assert_sound(block, random_box(3, 4))


def augmented(x, c):
    y = x * 1.0
    y += c
    y -= 2 * c
    y *= c
    y /= c - 5
    return y


def test_augmented_assignments_are_followed():
    """x -= mean, x /= std: as common in models as their longer forms, and no different if nothing is read again."""
    assert_sound(function(augmented, c=(4,))(), random_box(3, 4))


def alias(x):
    y = x - 0.2
    z = y
    y += x
    return z * 2  # z is the sum by now


def ignored_result(x):
    y = x - 0.2
    F.relu(y, inplace=True)
    return y


def twice_through_a_view(x):
    y = torch.flatten(x, 1) - 0.2
    z = y.flatten(1)
    z = F.relu(z, inplace=True)
    z += 1
    return y - z


def test_a_value_changed_in_place_and_read_by_another_name_is_refused():
    for forward in (alias, ignored_result, twice_through_a_view):
        with pytest.raises(UnsupportedOperator, match="after it was changed in place"):
            trace(function(forward)().eval())


CHANGES = {
    "leaky relu": lambda y: F.leaky_relu(y, 0.1, inplace=True),
    "leaky relu by name": lambda y: F.leaky_relu(inplace=True, input=y),
    "through a view": lambda y: F.relu(y.view(y.size(0), -1), inplace=True),
    "through dropout": lambda y: F.relu(F.dropout(y, 0.5, training=False), inplace=True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_reading_a_changed_value_is_refused(name):
    def forward(x):
        y = x - 0.2
        z = CHANGES[name](y)
        return torch.cat([z, y], 1)  # the user's line

    with pytest.raises(UnsupportedOperator, match=r"'cat' reads 'sub' after it was changed in place.*the user's line"):
        trace(function(forward)().eval())


def test_reading_a_value_that_modules_changed_is_refused():
    model = Lambda(lambda module, x: torch.cat([module.change(x), x], 1))
    model.change = nn.Sequential(nn.Identity(), nn.Dropout(), nn.LeakyReLU(inplace=True))
    with pytest.raises(UnsupportedOperator, match="after it was changed in place"):
        trace(model.eval())


COPIES = {
    "concatenation": lambda y: torch.cat([y, y], 1),
    "leaky relu": lambda y: F.leaky_relu(y, -0.5),
    "max pool": lambda y: F.max_pool2d(y.view(-1, 1, 2, 2), 1),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_may_be_read_after_the_change(name):
    def forward(module, x):
        y = x - 0.2
        z = COPIES[name](y)
        F.leaky_relu(y, 0.1, inplace=True)
        return 2 * z

    assert_sound(Lambda(forward), random_box(3, 4))


class Keeping(nn.Module):
    """A layer whose forward writes to its module in the way of `keep`; `refused` if torch.fx is to fail behind it."""

    def __init__(self, keep, refused):
        super().__init__()
        self.layer, self.keep, self.refused = nn.Linear(4, 4), keep, refused
        self.register_buffer("calls", torch.zeros(4))
        self.count, self.log, self.last, self.constant = 0, [], {"value": None}, torch.ones(4)

    def forward(self, x):
        x = self.layer(x)
        self.keep(self, x)
        return x if not self.refused or x.sum() > 0 else -x


def buffer_added(module, x):
    module.calls += 1


def buffer_changed(module, x):
    module._buffers["calls"].data.add_(1)


def number_counted(module, x):
    module.count += 1


def layer_replaced(module, x):
    module.layer = nn.Identity()


def layer_of_a_dictionary(module, x):
    module._modules["more"] = nn.Identity()


KEPT = {
    "buffer +=": buffer_added,
    "buffer in place": buffer_changed,
    "buffer replaced": lambda m, x: setattr(m, "calls", m.calls + 1),
    "buffer that is new": lambda m, x: m.register_buffer("new", torch.ones(1)),
    "value as an attribute": lambda m, x: setattr(m, "state", x),
    "value in a list": lambda m, x: m.log.append(x),
    "value in a dictionary": lambda m, x: m.last.update(value=x),
    "tensor in place": lambda m, x: m.constant.mul_(2),
    "number": number_counted,
    "layer": layer_replaced,
    "layer that is new": layer_of_a_dictionary,
}


@pytest.mark.parametrize("refused", [True, False])
@pytest.mark.parametrize("name", KEPT)
def test_tracing_and_bounds_leave_the_model_as_it_was(name, refused):
    model, box = nn.Sequential(Keeping(KEPT[name], refused)).eval(), random_box(2, 4, dtype=torch.float32)
    before = [(name, value, id(value)) for name, value in model.named_modules()]
    numbers, calls = {name: value.clone() for name, value in model.state_dict().items()}, model[0].calls
    for run in (trace, lambda model: bound(model, box)):
        try:
            run(model)
        except UnsupportedOperator:
            pass
        else:
            assert not refused
        assert [(name, value, id(value)) for name, value in model.named_modules()] == before
        assert model.state_dict().keys() == numbers.keys() and model[0].calls is calls
        assert all(value.equal(numbers[name]) for name, value in model.state_dict().items())
        assert (model[0].count, model[0].log, model[0].last) == (0, [], {"value": None})
        assert model[0].constant.equal(torch.ones(4)) and not hasattr(model[0], "state")
    assert isinstance(model(box.center), torch.Tensor)
