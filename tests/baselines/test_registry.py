"""Networks by name, their options, and what is refused."""

import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import baselines
from baselines import (
    UnknownNameError,
    UnknownOptionError,
    build,
    network_names,
    options_of,
    refuse_unknown_options,
    register,
    registry,
)
from cerdeq.equilibrium import Equilibrium


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("cnn_7", "cnn7"), ("resnet-9", "resnet9"), ("deqlat", "deqlate"), ("CerDEQ", "cerdeq"), ("CNN7", "cnn7")],
)
def test_an_unknown_network_names_the_nearest_and_all(wrong, near):
    with pytest.raises(UnknownNameError) as error:
        build(wrong, dataset="digits")
    assert wrong in str(error.value) and f"did you mean {near!r}" in str(error.value)
    assert all(name in str(error.value) for name in network_names())
    with pytest.raises(UnknownNameError):
        options_of(wrong)


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"did you mean 'cifar10'.*Known: .*digits"):
        build("cnn7", dataset="cifar-10")
    with pytest.raises(UnknownNameError, match="did you mean 'tiny-imagenet'"):
        build("cnn7", dataset="tinyimagenet")


def test_a_name_like_nothing_lists_what_there_is():
    with pytest.raises(UnknownNameError, match="Known: ") as error:
        build("qqqqqqqq")
    assert "did you mean" not in str(error.value) and isinstance(error.value, ValueError)


@pytest.mark.parametrize("name", network_names())
def test_an_unknown_option_of_a_network_names_the_known_ones(name):
    with pytest.raises(UnknownOptionError) as error:
        build(name, dataset="digits", marign=0.3)
    known = ", ".join(options_of(name)) or "none"
    assert str(error.value) == f"unknown option 'marign' of {name}; allowed: {known}"
    assert error.value.option == "marign" and isinstance(error.value, TypeError)


def test_the_first_unknown_option_of_several_is_named_and_known_ones_pass():
    known = options_of("cerdeq")
    refuse_unknown_options("cerdeq", ["margin", "gain"], known)
    with pytest.raises(
        UnknownOptionError, match=r"unknown option 'size' of a thing; allowed: equilibria, .*warm_start$"
    ):
        refuse_unknown_options("a thing", ["margin", "size", "depth"], known)


@pytest.mark.parametrize("name", ["cerdeq", "deqlate"])
@pytest.mark.parametrize(
    "options",
    [
        {"margin": 0},
        {"margin": 1.5},
        {"gain": 0},
        {"gain": 2.0},
        {"parametrisation": "peron"},
        {"iterations": 0},
        {"backward_iterations": -1},
    ],
)
def test_an_option_out_of_range_is_refused(name, options):
    with pytest.raises(ValueError, match=r"margin|gain|parametrisation|iterations"):
        build(name, dataset="digits", width=0.05, **options)


@pytest.mark.parametrize("width", [0, -1, -0.5, float("nan")])
def test_a_width_that_makes_no_sense_is_refused(width):
    with pytest.raises(ValueError, match="width"):
        build("cnn7", dataset="digits", width=width)


def test_options_reach_the_equilibrium():
    given = {"margin": 0.11, "gain": 0.77, "iterations": 3, "backward_iterations": 4}
    model = build("deqlate", dataset="digits", width=0.05, **given)
    part = next(m for m in model.modules() if isinstance(m, Equilibrium)).recurrence
    weight = part.parametrizations.weight[0]
    assert (part.iterations, part.backward_iterations, weight.margin) == (3, 4, 0.11)
    assert weight.gain.item() == pytest.approx(0.77)
    assert set(options_of("deqlate")) == set(options_of("cerdeq")) >= set(given)
    assert build("deqlate", dataset="digits", width=0.05, gain=None) is not None


def test_options_are_known_with_their_defaults():
    assert options_of("cerdeq")["margin"].default == 0.3
    assert options_of("resnet9") == {} and not {"width", "channels", "options"} & options_of("cerdeq").keys()


def test_every_option_of_an_equilibrium_is_an_option_of_its_networks():
    layer = set(inspect.signature(Equilibrium).parameters) - {"channels", "inject", "kernel_size"}
    for name in ("cerdeq", "deqlate", "deq7"):
        assert layer | {"pool", "norm", "recurrent"} <= options_of(name).keys()


def test_a_twin_has_no_options_of_a_recurrence():
    with pytest.raises(ValueError, match=r"recurrent.*margin"):
        build("cerdeq", dataset="digits", recurrent=False, margin=0.2)


def test_a_registered_function_is_a_network_and_its_arguments_are_options(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    @register("mine")
    def mine(shape, classes, width=1.0, hidden: int = 4):
        """A linear network."""
        features = shape[0] * shape[1] * shape[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    assert "mine" in network_names() and set(options_of("mine")) == {"hidden"}
    assert build("mine", dataset="digits", hidden=7)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ValueError, match="registered twice"):
        register("mine")(mine)


def test_a_new_file_is_a_new_network(tmp_path):
    """Nothing else names it: a copy of the package with one file more."""
    folder = shutil.copytree(Path(baselines.__file__).parent, tmp_path / "baselines")
    (folder / "mine.py").write_text(
        "from torch import nn\n"
        "from baselines.registry import register\n"
        "@register('mine')\n"
        "def mine(shape, classes, width=1.0):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    command = "import baselines; print(*baselines.network_names()); baselines.build('mine', 'digits')"
    path = [str(tmp_path), str(Path(inspect.getfile(Equilibrium)).parents[2])]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}; {command}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert sorted(done.stdout.split()) == sorted([*network_names(), "mine"])
