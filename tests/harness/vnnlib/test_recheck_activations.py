"""The checker confirms certificates of each activation, as a module and as a function, of torch and of ONNX files."""

from fractions import Fraction
from functools import partial

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from small_properties import proved_by, solve_small, tensors_of
from torch import nn

from cerdeq import Box, bound
from cerdeq.onnx import load_onnx
from harness.vnnlib.properties import Case, Constraint, InputBox, Property

INPUTS, HIDDEN = 2, 5
SPLIT = {
    "nn.ReLU": nn.ReLU,
    "F.relu": lambda: F.relu,
    "torch.relu": lambda: torch.relu,
    "Tensor.relu": lambda: lambda x: x.relu(),
    "F.relu in place": lambda: partial(F.relu, inplace=True),
    "nn.LeakyReLU": lambda: nn.LeakyReLU(0.2),
    "F.leaky_relu": lambda: partial(F.leaky_relu, negative_slope=0.2),
    "torch.abs": lambda: torch.abs,
    "torch.absolute": lambda: torch.absolute,
    "Tensor.abs": lambda: lambda x: x.abs(),
    "Relu": lambda: ("Relu", [], {}),
    "LeakyRelu": lambda: ("LeakyRelu", [], {"alpha": 0.2}),
    "Abs": lambda: ("Abs", [], {}),
}
OTHER = {  # the checker has no rule for curves, such as sigmoid
    "nn.Hardtanh": nn.Hardtanh,
    "F.hardtanh": lambda: F.hardtanh,
    "nn.ReLU6": nn.ReLU6,
    "F.relu6": lambda: F.relu6,
    "torch.clamp": lambda: partial(torch.clamp, min=-0.95, max=0.95),
    "Tensor.clip": lambda: lambda x: x.clip(max=0.95),
    "nn.Hardsigmoid": nn.Hardsigmoid,
    "F.hardsigmoid": lambda: F.hardsigmoid,
    "nn.Hardswish": nn.Hardswish,
    "F.hardswish": lambda: F.hardswish,
    "Clip": lambda: ("Clip", ["low", "high"], {}),
}


class Network(nn.Module):
    """Layers with `activation`, with `inner` in a module of its own, and with a ReLU."""

    def __init__(self, activation, inner):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(INPUTS, HIDDEN), Inner(inner), nn.Linear(HIDDEN, 1)
        self.activation = activation

    def forward(self, x):
        return self.last(F.relu(self.inner(self.activation(self.first(x)))))


class Inner(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.layer, self.second, self.activation = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN), activation

    def forward(self, x):
        return self.second(self.activation(self.layer(x)))


def of_file(path, model, count, operator, constants, attributes):
    """Return the network of an ONNX file with the model's layers, this operator behind the first ones, then ReLUs."""
    nodes, tensors, value = [], {"low": np.float32(-0.95), "high": np.float32(0.95)}, "x"
    for number, layer in enumerate((model.first, model.inner.layer, model.inner.second, model.last)):
        tensors |= {f"w{number}": layer.weight.detach().numpy(), f"b{number}": layer.bias.detach().numpy()}
        nodes.append(helper.make_node("Gemm", [value, f"w{number}", f"b{number}"], [f"p{number}"], transB=1))
        follows = (operator, constants, attributes) if number < count else ("Relu", [], {})
        nodes.append(helper.make_node(follows[0], [f"p{number}", *follows[1]], [value := f"y{number}"], **follows[2]))
    x, y = (helper.make_tensor_value_info(*end) for end in (("x", 1, ("batch", INPUTS)), ("p3", 1, ("batch", 1))))
    constants = [numpy_helper.from_array(np.asarray(tensor), name) for name, tensor in tensors.items()]
    graph = helper.make_graph(nodes[:-1], "net", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return load_onnx(path)


def network_of(activation, is_split, folder):
    """Return a network with two layers of an activation that is split; of another, with one on about [0.1, 0.9]."""
    torch.manual_seed(0)
    function = activation if callable(activation) else torch.relu  # of a file: of its clamp, too, here
    model = Network(function, function if is_split else torch.relu)
    for parameter in model.parameters():
        parameter.data *= 2
    if not is_split:
        model.first.weight.data /= 8
        model.first.bias.data.fill_(0.5)
        model.inner.layer.weight.data *= 16
        model.inner.layer.bias.data -= model.inner.layer.weight @ function(torch.full((HIDDEN,), 0.5))
    network = model if callable(activation) else of_file(folder / "net.onnx", model, 1 + is_split, *activation)
    network.input_shape = (INPUTS,)
    return network.eval().requires_grad_(False)


def property_near(network, share):
    """Return a property of the box [-1, 1] that no input satisfies, by a share of what linear bounds would need."""
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 101)] * INPUTS)
    minimum = network(grid).min().item()
    lower = bound(network, Box(torch.zeros(1, INPUTS), torch.ones(1, INPUTS)), "crown")[0].item()
    limit = Fraction(minimum - share * (minimum - lower)).limit_denominator(10**9)
    box = InputBox((Fraction(-1),) * INPUTS, (Fraction(1),) * INPUTS)
    return Property(INPUTS, 1, (Case(box, (Constraint({0: Fraction(1)}, limit),)),))


@pytest.mark.parametrize("name", [*SPLIT, *OTHER])
def test_a_certificate_of_each_activation_is_confirmed(name, tmp_path):
    network = network_of((SPLIT | OTHER)[name](), name in SPLIT, tmp_path)
    property_ = property_near(network, 0.2)
    result = solve_small(property_, network)
    assert result.status == "unsat"
    assert len([tensor for tensor in result.certificate if tensor.endswith("/signs")]) > 1
    assert proved_by(network, property_, tensors_of(result)) == "certificate"
