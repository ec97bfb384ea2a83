"""Weights of monDEQs as others publish them: the network `monotone` computes what theirs does."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.io import savemat
from scipy.sparse import csc_matrix

from baselines import build
from baselines.monotone import MonotoneWeight, circular_matrix
from cerdeq.equilibrium import fold
from harness.common.errors import InputError
from harness.pretrained.mondeq import is_matlab, network_tensors, read_matlab

SHAPE = (1, 16, 16)
MODULUS = 4.0


def dense_file(units=5):
    names = {"U.weight": (units, 256), "U.bias": (units,), "A.weight": (units, units), "B.weight": (units, units)}
    tensors = {f"mon.linear_module.{name}": torch.randn(shape) * 0.3 for name, shape in names.items()}
    return tensors | {"Wout.weight": torch.randn(10, units), "Wout.bias": torch.randn(10)}


def convolutional_file(channels=2):
    shapes = {"U.weight": (channels, 1, 6, 6), "U.bias": (channels,)}
    shapes |= {name: (channels, channels, 3, 3) for name in ("A.weight", "B.weight")}
    tensors = {f"mon.linear_module.{name}": torch.randn(shape) for name, shape in shapes.items()}
    scalars = {"mon.linear_module.g": torch.tensor(1.7), "mon.linear_module.h": torch.tensor(2.3)}
    return tensors | scalars | {"Wout.weight": torch.randn(10, channels * 4), "Wout.bias": torch.randn(10)}


def solve(step, z):
    """Return the z with z = relu(step(z)), by forward-backward splitting; step(z) is W z + h."""
    for _ in range(20_000):
        following = torch.relu(z + 0.01 * (step(z) - z))
        if (following - z).abs().max() < 1e-13:
            return following
        z = following
    raise AssertionError("no convergence")


def pad(x):
    return F.pad(x, (1, 1, 1, 1), mode="circular")


def convolutional_output(tensors, x):
    """Return what the published code computes: circular convolutions, z = 0 on the border, means over 2x2 pixels."""
    t = {name.split(".", 2)[2] if "module" in name else name: value.double() for name, value in tensors.items()}
    a, b = t["A.weight"] / t["A.weight"].norm(), t["h"] * t["B.weight"] / t["B.weight"].norm()
    h = F.conv2d(pad(x), t["U.weight"], t["U.bias"], stride=3)
    inner = F.pad(torch.ones_like(h[:, :, 1:-1, 1:-1]), (1, 1, 1, 1))

    def of_transpose(kernel, y):
        free = torch.zeros_like(y, requires_grad=True)
        return torch.autograd.grad(F.conv2d(pad(free), kernel), free, y)[0]

    def step(z):
        az, bz = F.conv2d(pad(z), a), F.conv2d(pad(z), b)
        return inner * ((1 - MODULUS) * z - t["g"] * of_transpose(a, az) + bz - of_transpose(b, z) + h)

    z = solve(step, torch.zeros_like(h)) * inner
    return F.linear(F.avg_pool2d(z, 2).flatten(1), t["Wout.weight"], t["Wout.bias"])


def loaded(tensors, units):
    """Return the network with these tensors, in float64."""
    network = build("monotone", "mnist", units=units, modulus=MODULUS)[1:]
    fold(network)
    network.inject = torch.nn.Linear(256, units)
    network.load_state_dict(network_tensors(tensors, MODULUS, SHAPE))
    return network.double().eval()


def test_a_dense_file_is_their_network():
    torch.manual_seed(0)
    tensors, x = dense_file(), torch.rand(3, *SHAPE).double()
    t = {name.removeprefix("mon.linear_module."): tensor.double() for name, tensor in tensors.items()}
    a, b = t["A.weight"], t["B.weight"]
    weight = (1 - MODULUS) * torch.eye(5) - a.T @ a + b - b.T
    h = F.linear(x.flatten(1), t["U.weight"], t["U.bias"])
    expected = F.linear(solve(lambda z: z @ weight.T + h, torch.zeros_like(h)), t["Wout.weight"], t["Wout.bias"])
    torch.testing.assert_close(loaded(tensors, 5)(x), expected, rtol=1e-5, atol=1e-5)


def test_a_convolutional_file_is_their_network():
    torch.manual_seed(1)
    tensors, x = convolutional_file(), torch.rand(2, *SHAPE).double()
    output = loaded(tensors, 2 * 3 * 3)(x)
    torch.testing.assert_close(output, convolutional_output(tensors, x), rtol=1e-5, atol=1e-5)


def test_a_matlab_file_is_read():
    torch.manual_seed(2)
    tensors, file = dense_file(), io.BytesIO()
    short = {"A.weight": "A", "B.weight": "B", "U.weight": "U", "Wout.weight": "C"}
    arrays = {name.split("linear_module.")[-1]: tensor.double().numpy() for name, tensor in tensors.items()}
    tensors |= {name.removeprefix("mon."): tensor for name, tensor in tensors.items()}  # as in public files
    columns = {"u": arrays["U.bias"][:, None], "c": arrays["Wout.bias"][:, None]}
    others = {
        "title": "FC 5",
        "cells": np.array([1, "a"], dtype=object),
        "struct": {"a": 1},
        "sparse": csc_matrix([[1]]),
    }
    savemat(file, {short[name]: value for name, value in arrays.items() if name in short} | columns | others)
    assert is_matlab(file.getvalue()) and not is_matlab(b"PK")
    own, expected = (network_tensors(t, MODULUS, SHAPE) for t in (read_matlab(file.getvalue()), tensors))
    assert own.keys() == expected.keys() and all(torch.equal(own[name], expected[name]) for name in own)


def test_other_files_are_refused():
    with pytest.raises(InputError, match="no tensor B"):
        network_tensors({"A": torch.ones(2, 2)}, MODULUS, SHAPE)
    with pytest.raises(InputError, match="damaged MATLAB file"):
        read_matlab(b"MATLAB 5.0 and nothing else")
    savemat(file := io.BytesIO(), {"A": np.zeros(2**26 + 1, np.int8)}, do_compression=True)
    assert len(file.getvalue()) < 10**5
    with pytest.raises(InputError, match="numbers, unpacked: found 67108865, allowed: at most 67,108,864"):
        read_matlab(file.getvalue())


DENSE, CONVOLUTIONAL, PRE = dense_file(), convolutional_file(), "mon.linear_module."
WRONG = {
    "A of other units": DENSE | {f"{PRE}A.weight": torch.ones(3, 5)},
    "A without rows": DENSE | {f"{PRE}A.weight": torch.ones(0, 0)},
    "A with three dimensions": DENSE | {f"{PRE}A.weight": torch.ones(2, 5, 5)},
    "A is a number": DENSE | {f"{PRE}A.weight": torch.tensor(1.0)},
    "no g": {name: tensor for name, tensor in CONVOLUTIONAL.items() if not name.endswith(".g")},
    "g of two numbers": CONVOLUTIONAL | {f"{PRE}g": torch.ones(2)},
    "C of other units": CONVOLUTIONAL | {"Wout.weight": torch.ones(10, 3)},
    "u of other channels": CONVOLUTIONAL | {f"{PRE}U.bias": torch.ones(3)},
    "complex A": DENSE | {f"{PRE}A.weight": torch.ones(5, 5, dtype=torch.complex64)},
    "sparse A": DENSE | {f"{PRE}A.weight": torch.eye(5).to_sparse()},
    "A without values": DENSE | {f"{PRE}A.weight": torch.ones(5, 5, device="meta")},
    "A of one number": DENSE | {f"{PRE}A.weight": torch.ones(1).expand(2**14, 2**14)},
    "two tensors A": DENSE | {"A": torch.ones(5, 5)},
}


@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_are_not_those_of_a_mondeq_are_refused_in_a_line(case):
    with pytest.raises(InputError, match=r"found .*, allowed: ") as caught:
        network_tensors(WRONG[case], MODULUS, SHAPE)
    assert "\n" not in str(caught.value)


def test_a_circular_convolution_is_its_matrix():
    kernel, x = torch.randn(2, 2, 3, 3).double(), torch.rand(1, 2, 4, 5).double()
    assert torch.allclose(circular_matrix(kernel, (4, 5)) @ x.flatten(), F.conv2d(pad(x), kernel).flatten())
    weight = MonotoneWeight(0.5, (4, 5))(torch.randn(2, 2, 2, 3, 3).double())
    assert torch.linalg.eigvalsh(torch.eye(40).double() - (weight + weight.T) / 2)[0] > 0.5 - 1e-9
