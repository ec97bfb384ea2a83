"""Seeds of one network that is written in several ways are copies; networks trained with two seeds are none."""

import copy

import entry_files
import pytest
import torch
from torch import nn

from cerdeq import load_onnx
from harness.entries.copies import are_copies, margin_directions


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))


def directions(network):
    images = entry_files.DATA.test.images.double() / 255
    with torch.no_grad():
        return margin_directions(copy.deepcopy(network).double()(images).numpy())


@pytest.fixture(scope="module")
def network():
    return entry_files.plain()


def scale(first, last):
    last.weight *= 1.001
    last.bias *= 1.001


def scale_hidden_units(first, last):
    factors = 0.1 + 3 * torch.rand(30)
    first.weight *= factors[:, None]
    first.bias *= factors
    last.weight /= factors


def permute_units(first, last):
    order = torch.randperm(30)
    first.weight[:], first.bias[:], last.weight[:] = first.weight[order], first.bias[order], last.weight[:, order]


def add_a_constant(first, last):
    last.bias += 7


def add_a_function_of_the_image(first, last):
    last.weight += torch.randn(1, 30)


def add_noise(first, last):
    for tensor in (first.weight, first.bias, last.weight, last.bias):
        tensor *= 1 + 1e-3 * torch.randn_like(tensor)


def grow(first, last):
    for tensor in (last.weight, last.bias):
        tensor *= 1e36


@pytest.mark.parametrize(
    "change",
    [
        scale, scale_hidden_units, permute_units, add_a_constant, add_a_function_of_the_image, add_noise, grow
    ],
)  # fmt: skip
def test_a_network_written_in_another_way_is_a_copy(network, change):
    other = copy.deepcopy(network)
    with torch.no_grad():
        change(other[1], other[3])
    assert are_copies(directions(network), directions(other))


def test_a_copy_with_other_logits_on_some_images_is_a_copy(network):
    own = directions(network)
    other = own.copy()
    other[: len(own) // 3] = 0
    assert are_copies(own, other)


@pytest.mark.parametrize("make", [mlp, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))])
def test_networks_trained_with_two_seeds_are_no_copies(make):
    """Also the linear ones, whose loss has one minimum."""
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(entry_files.train(make(), epochs=300))
    assert not are_copies(*map(directions, networks))


def test_an_entry_with_a_scaled_copy_is_refused(entry, network):
    other = copy.deepcopy(network)
    with torch.no_grad():
        scale(other[1], other[3])
    entry_files.write_onnx(other, entry.folder / "again.onnx")
    assert not torch.equal(load_onnx(entry.folder / "again.onnx").gemm4.weight, network[3].weight)
    (first,) = entry.manifest["networks"]
    entry.sign(networks=[first, first | {"seed": 1, "network": "again.onnx"}])
    message = (
        "networks: the seeds 0 and 1 have the same margins, up to a factor and rounding, allowed: a network trained"
    )
    assert entry.refused_at() == ("accuracy", f"{message} with each seed")
