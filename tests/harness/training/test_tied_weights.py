"""A network with one weight under two names: trained, interrupted, stored once, loaded, bounded; what is refused."""

import math

import pytest
import torch
from one_network import train_and_evaluate
from safetensors.torch import load_file, save_file
from steppers import Killed, kill, train_network
from torch import nn

from baselines import build, registry
from cerdeq import LinfBall, bound
from harness.command_line import main
from harness.common.errors import InputError
from harness.config.buildable import check_buildable
from harness.data import load
from harness.evaluation.network import load_network
from harness.evaluation.served import _load_pyfunc
from harness.storage import folder
from harness.storage.records import make_record
from harness.training.initialise import initialise

TIED = ["2.weight", "4.weight"]


def tied(shape, classes, width=1.0):
    middle = [nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), *middle, nn.Linear(32, classes))
    network[4].weight = network[2].weight
    return network


def shared(shape, classes, width=1.0):
    network = tied(shape, classes)
    network[4].weight = nn.Parameter(network[2].weight.t())
    return network


class AfterAddition(nn.Module):
    """The first use of its weight follows an addition, the second does not."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight

    def forward(self, x):
        x = x.flatten(1)
        return self.last(self.second(self.first(x + x).relu()).relu())


@pytest.fixture
def networks(monkeypatch):
    registry.import_networks()
    added = {"tied_layers": tied, "shared": shared, "residual": lambda shape, classes, width: AfterAddition()}
    monkeypatch.setattr(registry, "_BUILDERS", registry._BUILDERS | added)


@pytest.fixture
def config(networks, tiny_training):
    return tiny_training("tied_layers", method="crown-ibp", train={"ema_decay": 0.9})


@pytest.fixture
def network_dir(config, tmp_path):
    """The folder of a tied network that was killed once, in a sweep's directory."""
    directory = folder.network_dir(tmp_path / "tied", make_record(config, load("digits").fingerprint).key)
    with pytest.raises(Killed):
        train_network(config, directory, kill, save_seconds=0)
    train_network(config, directory)
    return directory


def test_its_weight_is_stored_once_and_it_is_the_same_network_everywhere(
    config, network_dir, tiny_evaluation, tmp_path
):
    train_network(config, tmp_path / "undisturbed")
    stored, other = (load_file(path / folder.WEIGHTS) for path in (network_dir, tmp_path / "undisturbed"))
    assert [name for name in TIED if name in stored] == TIED[:1]
    assert all(torch.equal(stored[name], other[name]) for name in stored)
    model = load_network(config, network_dir / folder.WEIGHTS)
    assert model[3].weight is model[5].weight and torch.equal(model[3].weight, stored[TIED[0]].double())
    images = load("digits").test_images(20).images.double() / 255
    assert torch.equal(torch.from_numpy(_load_pyfunc(str(network_dir)).predict(images.numpy())), model(images))
    train_and_evaluate(config, [tiny_evaluation(stages=("ibp", "crown-ibp", "bab"))], network_dir)
    assert main("recheck", [str(tmp_path / "tied")]) == 0


def test_bounds_of_the_stored_network_contain_its_outputs(config, network_dir):
    model = load_network(config, network_dir / folder.WEIGHTS)
    x, eps = load("digits").test_images(10).images.double() / 255, 0.03
    generator, points = torch.Generator().manual_seed(0), [x]
    for _ in range(200):
        points.append((x + eps * torch.randn(x.shape, generator=generator, dtype=x.dtype).sign()).clamp(0, 1))
    outputs = torch.stack([model(point) for point in points])
    for method in ("ibp", "crown-ibp", "crown", "alpha-crown"):
        lower, upper = bound(model, LinfBall(x, eps), method)
        assert (lower <= outputs).all() and (outputs <= upper).all()


def test_two_values_of_its_weight_are_refused(config, network_dir):
    path = network_dir / folder.WEIGHTS
    tensors = load_file(path)
    save_file(tensors | {TIED[1]: tensors[TIED[0]].clone()}, path)
    load_network(config, path)
    save_file(tensors | {TIED[1]: tensors[TIED[0]] + 1e-3}, path)
    with pytest.raises(InputError, match=r"2\.weight and 4\.weight: found two values, allowed: one"):
        load_network(config, path)


def test_two_parameters_in_one_memory_are_refused_before_anything_starts(networks, tiny_training):
    with pytest.raises(
        InputError, match=r"model: found two parameters in one memory, 2\.weight and 4\.weight; allowed"
    ):
        check_buildable(tiny_training("shared"), [])


def test_its_weight_is_drawn_once_and_halved_where_a_use_follows_an_addition(networks):
    torch.manual_seed(0)
    initialise(model := build("residual", "digits"))
    weight = model.network.first.weight
    assert float(weight.detach().std()) * 64 / math.sqrt(2 * math.pi) == pytest.approx(0.5, rel=0.05)
