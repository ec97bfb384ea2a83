"""The contract of every registered network, met by walking the registry: whatever is added is tested unasked."""

import math
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from small_networks import DEPTHS, NAMED, width_for
from torch import nn

from baselines import DATASETS, build
from baselines.contract import ContractError, check_network, images
from cerdeq.bounds import Interval
from cerdeq.equilibrium.weights import PARAMETRISATIONS
from cerdeq.operators import record, table

BOUNDS = ("ibp", "crown")  # which is computed after crown-ibp, by the same rules
OF_WEIGHTS = {"parametrisation", "gradient", "margin_start"}
"""Options that change which weights there are, or gradients: linear bounds of folded networks do not depend on them."""
SHALLOW = [(name, "digits", {}) for name in NAMED]
LARGE = [("cnn7", "cifar10", {}), ("cerdeq", "mnist", {})]
LARGE += [  # it has layers of its own
    pytest.param(name, "tiny-imagenet", {}, marks=() if name in ("cnn7", "resnet9", "cerdeq") else pytest.mark.slow)
    for name in NAMED
    if name not in ("cnn5", "cnn11")
]
VARIANTS = [
    ("cerdeq", "mnist", {"equilibria": 2}),
    ("deqlate", "digits", {"recurrent": False, "equilibria": 2, "norm": False}),
    ("deq7", "digits", {"norm": False, "gain": None}),
    *[("cerdeq", "digits", {"parametrisation": name}) for name in PARAMETRISATIONS],
    ("deqlate", "digits", {"parametrisation": "orthogonal", "groups": 4}),
    ("cerdeq", "digits", {"gradient": "unrolled", "warm_start": True}),
    ("cerdeq", "digits", {"image": True, "channel_gain": True, "kernel_size": 1}),
    ("deqscales", "digits", {"recurrent": False}),
    ("deqsmall", "digits", {"layers": 2, "recurrent": False}),
    ("cerdeq", "digits", {"margin_start": 0.9, "early_iterations": 2, "equilibria": 2}),
]
DEEP = [(name, "digits", {"depth": depths[-1]}) for name, depths in DEPTHS.items()]
SHALLOWEST = [
    pytest.param(name, "digits", {"depth": depths[0]}, marks=pytest.mark.slow) for name, depths in DEPTHS.items()
]


@pytest.mark.parametrize(("name", "dataset", "options"), SHALLOW + LARGE + VARIANTS + DEEP + SHALLOWEST)
def test_every_network_does_what_it_must(name, dataset, options):
    linear = dataset == "digits" and not {"depth", *OF_WEIGHTS} & {*options}
    check_network(name, dataset, width_for(dataset), BOUNDS if linear else ["ibp"], **options)


class Numpy(nn.Linear):
    def reset_parameters(self):
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(np.random.default_rng().normal(size=self.weight.shape)))
            self.bias.zero_()


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(10))

    def forward(self, x):
        return x


class Silent(Unused):
    def forward(self, x):
        return x + 0 * self.weight


class Training(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(True)


class Flipped(nn.Module):
    def forward(self, x):
        return torch.flip(x, (1,))


def too_narrow(ctx, x, dims):
    return Interval(x.center.flip(dims), x.radius.flip(dims) / 2, None if x.clean is None else x.clean.flip(dims))


class Tied(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self[2].weight = self[0].weight


class View(Tied):
    def __init__(self):
        super().__init__()
        self[2].weight = nn.Parameter(self[0].weight.t())


class Scaled(nn.Linear):
    def reset_parameters(self):
        super().reset_parameters()
        with torch.no_grad():
            self.weight /= float(self.weight.abs().max())


LINEAR = partial(nn.Linear, 64, 10)
BROKEN = {
    "weights that no seed decides": ([partial(Numpy, 64, 10)], "two builds with the same seed differ"),
    "too few logits": ([partial(nn.Linear, 64, 9)], r"logits of shape \(3, 9\), of 3 images and 10 classes"),
    "a weight that is not used": ([LINEAR, Unused], "no finite gradient for 2.weight"),
    "a weight that changes nothing": ([LINEAR, Silent], "the gradient for 2.weight is 0"),
    "statistics of the evaluated batch": ([partial(Training, 64), LINEAR], "logits of an image in another batch"),
    "a rule that bounds nothing": ([LINEAR, Flipped], "bounds by ibp do not contain what a point of the ball gives"),
    "values that are read while building": ([partial(Scaled, 64, 10)], "cannot be built on torch's device 'meta'"),
    "weights that share memory": ([View], "found two parameters in one memory, 1.0.weight and 1.2.weight"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_network_that_does_not_is_refused(case, monkeypatch):
    monkeypatch.setattr(table, "_by_function", dict(table._by_function))
    table.register(record.Operator("flip", too_narrow, (torch.flip,)))
    layers, message = BROKEN[case]

    def network(shape, classes, width):
        return nn.Sequential(nn.Flatten(), *(layer() for layer in layers))

    with pytest.raises(ContractError, match=message):
        check_network(network, bounds=["ibp"])


def test_tied_weights_keep_the_contract():
    check_network(lambda shape, classes, width: nn.Sequential(nn.Flatten(), Tied()))


@pytest.mark.parametrize("dataset", DATASETS)
def test_pixels_are_normalised_by_the_first_layer(dataset):
    model, info = build("cnn7", dataset=dataset, width=0.02).double(), DATASETS[dataset]
    x = images(dataset, 2)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (info.mean, info.std))
    torch.testing.assert_close(model[0](x), (x - mean) / std, rtol=1e-6, atol=1e-6)
    assert len(info.mean) == len(info.std) == info.shape[0]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("width", [0.001, 0.1])
def test_width_scales_every_channel_count(name, width):
    """Exactly, or to a multiple of the groups."""
    with torch.device("meta"):
        models = build(name, dataset="digits"), build(name, dataset="digits", width=width)
    full, thin = ({key: m for key, m in model.named_modules() if isinstance(m, nn.Conv2d)} for model in models)
    groups = max((m.groups for m in full.values()), default=1)
    assert thin.keys() <= full.keys() and all("shortcut" in key for key in full.keys() - thin.keys())
    for key, module in thin.items():
        assert abs(module.out_channels - max(1, round(full[key].out_channels * width))) < groups


class OwnForward(nn.Module):
    """A network as a user writes it, whose layers have a forward of their own."""

    def __init__(self, features, classes):
        super().__init__()
        self.first, self.last = nn.Linear(features, 16), nn.Linear(16, classes)

    def forward(self, x):
        return self.last(torch.relu(self.first(x.flatten(1))))


class Turned(nn.Sequential):
    def forward(self, x):
        return super().forward(-x)


@pytest.mark.parametrize("kind", ["module", "sequential with a forward", "a layer called normalize"])
def test_any_module_is_a_network(kind):
    def network(shape, classes, width):
        body = OwnForward(math.prod(shape), classes)
        if kind == "module":
            return body
        layers = OrderedDict(normalize=nn.Flatten(), last=body)
        return nn.Sequential(layers) if kind.startswith("a layer") else Turned(layers)

    check_network(network, "digits")
    model = build(network, "digits")
    x = torch.rand(2, 1, 8, 8)
    assert [name for name, _ in model.named_children()] == ["normalize", "network"]
    assert torch.equal(model(x), model.network(model.normalize(x)))


def test_a_function_that_returns_no_module_is_refused():
    with pytest.raises(TypeError, match=r"found list, allowed: an nn\.Module"):
        build(lambda shape, classes, width: [], "digits")
