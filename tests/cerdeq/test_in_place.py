"""In-place operations: followed where nothing is read after its change, else refused."""

import pytest
import torch
import torch.nn.functional as F
from cases import assert_sound, function
from oracles import Lambda, random_box
from torch import nn

from cerdeq import bound
from cerdeq.bounds import UnsupportedOperator, trace


class InPlaceSum(nn.Module):
    def forward(self, x):
        y = x - 0.2
        z = y
        y += x
        return z * 2  # z is the sum by now


class ReturnsTheChanged(nn.Module):
    def forward(self, x):
        y = x - 0.2
        F.relu(y, inplace=True)
        return y


class ChangesTwiceThroughAView(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = torch.flatten(x, 1) - 0.2
        z = y.flatten(1)
        z = self.relu(z)
        z += 1
        return y - z


IN_PLACE = [
    InPlaceSum,
    ReturnsTheChanged,
    ChangesTwiceThroughAView,
]


def test_a_value_changed_in_place_and_read_again_is_refused():
    for make in IN_PLACE:
        with pytest.raises(UnsupportedOperator, match="after it was changed in place"):
            bound(make().double().eval(), random_box(3, 4))


def test_the_usual_in_place_residual_is_supported():
    """As in torchvision: one in-place ReLU used twice, and an in-place sum; nothing is read after its change."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x):
            out = self.relu(self.one(x))
            out = self.two(out)
            out += x
            return self.relu(out)

    assert_sound(Block(), random_box(3, 4))


def plus(x, c):
    y = x * 1.0
    y += c
    return y


def minus(x, c):
    y = x * 1.0
    y -= c
    return y


def times(x, c):
    y = x + 0.0
    y *= c
    return y


def over(x, c):
    y = x + 0.0
    y /= c
    return y


def test_augmented_assignments_are_followed():
    """x -= mean, x /= std: as common in models as their longer forms, and no different where nothing is read again."""
    for forward in (plus, minus, times, over):
        assert_sound(function(forward, c=(4,))(), random_box(3, 4))


CHANGES = {
    "leaky relu": lambda y: F.leaky_relu(y, 0.1, inplace=True),
    "leaky relu positional": lambda y: F.leaky_relu(y, 0.1, True),
    "leaky relu by name": lambda y: F.leaky_relu(inplace=True, input=y),
    "leaky relu module": nn.LeakyReLU(0.1, inplace=True),
    "through a view": lambda y: F.relu(y.view(y.size(0), -1), inplace=True),
    "through a reshape": lambda y: F.relu(torch.reshape(y, (-1, 4)), inplace=True),
    "through dropout": lambda y: F.relu(F.dropout(y, 0.5, training=False), inplace=True),
    "through modules": nn.Sequential(nn.Identity(), nn.Dropout(), nn.LeakyReLU(inplace=True)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_reading_a_changed_value_is_refused(name):
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.change = CHANGES[name]

        def forward(self, x):
            y = x - 0.2
            z = self.change(y)
            return torch.cat([z, y], 1)  # the user's line

    with pytest.raises(UnsupportedOperator, match=r"'cat' reads 'sub' after it was changed in place.*the user's line"):
        trace(Read().eval())


COPIES = {
    "concatenation": lambda y: torch.cat([y, y], 1),
    "negation": lambda y: -y,
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
