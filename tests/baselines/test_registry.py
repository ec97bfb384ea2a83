"""Networks by name, their options, and what is refused."""

import inspect

import pytest
import torch
from torch import nn

from baselines import (
    UnknownNameError,
    UnknownOptionError,
    build,
    network_names,
    options_of,
    refuse_unknown_options,
    register,
    registry,
    required_options,
)
from cerdeq.equilibrium import Equilibrium

UNKNOWN = {
    "cnn_7": "did you mean 'cnn7'?",
    "CerDEQ": "did you mean 'cerdeq'?",
    "cnn15": "write `model: cnn, options: {depth: 15}`",
    "resnet13": "write `model: resnet, options: {depth: 13}`",
    "tied7": "write `model: tied, options: {depth: 7}`",
    "qqqqqqqq": "Known: ",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_network_is_refused_with_what_to_write(name):
    for call in (build, options_of):
        with pytest.raises(UnknownNameError) as error:
            call(name)
        for part in (repr(name), UNKNOWN[name], *network_names()):
            assert part in str(error.value)


def test_an_unknown_data_set_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"did you mean 'cifar10'.*Known: .*digits"):
        build("cnn7", dataset="cifar-10")


def test_an_unknown_option_is_refused_with_the_known_ones():
    with pytest.raises(UnknownOptionError, match=r"unknown option 'marign' of cnn7; allowed: none$") as error:
        build("cnn7", dataset="digits", marign=0.3)
    assert error.value.option == "marign" and isinstance(error.value, TypeError)
    with pytest.raises(UnknownOptionError, match=r"unknown option 'size' of a thing; allowed: equilibria, "):
        refuse_unknown_options("a thing", ["margin", "size", "other"], options_of("cerdeq"))


OUT_OF_RANGE = [
    ("cerdeq", {"margin": 0}),
    ("cerdeq", {"equilibria": 3}),
    ("cerdeq", {"recurrent": False, "margin": 0.2}),
    ("cnn", {"depth": 4}),
    ("convdeq", {"layers": 0}),
    ("fcdeq", {"hidden": []}),
    ("fctied", {"steps": 0}),
    ("deqsmall", {"layers": 0}),
    ("tiedsmall", {"steps": 0}),
    ("resnet", {"depth": 8}),
    ("tied", {"depth": 6}),
]


@pytest.mark.parametrize(("name", "options"), OUT_OF_RANGE)
def test_an_option_out_of_range_is_refused_by_its_name(name, options):
    with pytest.raises(ValueError, match="|".join(options)):
        build(name, dataset="digits", width=0.05, **options)


def test_an_option_without_a_default_is_required():
    assert [name for name in network_names() if required_options(name)] == ["cnn", "tied", "onnx", "resnet"]
    with pytest.raises(TypeError, match="network 'cnn': missing option: depth"):
        build("cnn")


@pytest.mark.parametrize("width", [0, -0.5, float("nan")])
def test_a_width_that_is_not_positive_is_refused(width):
    with pytest.raises(ValueError, match="width"):
        build("cnn7", dataset="digits", width=width)


def test_options_reach_the_equilibrium():
    options = {"margin": 0.11, "gain": 0.77, "iterations": 3, "backward_iterations": 4}
    model = build("deqlate", dataset="digits", width=0.05, **options)
    part = next(m for m in model.modules() if isinstance(m, Equilibrium)).recurrence
    weight = part.parametrizations.weight[0]
    assert (part.iterations, part.adjoint.iterations, weight.margin) == (3, 4, 0.11)
    assert weight.gain.item() == pytest.approx(0.77)
    assert build("deqlate", dataset="digits", width=0.05, gain=None) is not None


def test_every_option_of_an_equilibrium_is_an_option_of_its_networks():
    layer = set(inspect.signature(Equilibrium).parameters) - {"channels", "inject", "kernel_size"}
    for name in ("cerdeq", "deqlate", "deq7"):
        assert layer | {"norm", "recurrent"} <= options_of(name).keys()
        assert options_of(name)["margin"].default == 0.3
    assert options_of("resnet9") == {}


def test_a_registered_function_is_a_network_and_its_arguments_are_options(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    @register("mine")
    def mine(shape, classes, width=1.0, hidden: int = 4):
        features = shape[0] * shape[1] * shape[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    assert "mine" in network_names() and set(options_of("mine")) == {"hidden"}
    assert build("mine", dataset="digits", hidden=7)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ValueError, match="registered twice"):
        register("mine")(mine)
