"""Every setting changes the network or its evaluation, as every one changes a key (test_training_config.py).

A new field of harness/config fails here until it stands in one of the tables: TRAINED and EVALUATED are checked here on
a small network, ELSEWHERE by other tests. What a method ignores, `Method.ignored`, is checked to be ignored.
"""

from functools import cache

import pytest
import torch

from baselines import build
from harness.common.radius import Radius
from harness.config.training import Training
from harness.data import load
from harness.evaluation.network import prepare_network
from harness.evaluation.verdicts import evaluate_images
from harness.methods import METHODS, make_method, method_options
from harness.settings import Evaluation, Recipe
from harness.training.loop import train

RECIPE = {"epochs": 3, "batch_size": 64, "ramp_start": 1, "ramp_epochs": 2, "decay_epochs": (1,), "learning_rate": 5e-3}
TRAINED = {
    "train.eps": "1/4",
    "seed": 1,
    "model": "cnn5",
    "options": {"margin": 0.9},
    "method": "ibp",
    "method_options": {"alpha": 0.9},
    "width": 0.2,
    "train.epochs": 2,
    "train.batch_size": 32,
    "train.learning_rate": 1e-3,
    "train.decay_epochs": (),
    "train.decay_factor": 0.9,
    "train.ramp_start": 2,
    "train.ramp_epochs": 0,
    "train.ramp_shape": "linear",
    "train.regularisation": 0.0,
    "train.initialisation": "default",
    "train.mean": (0.5,),
    "train.std": (0.25,),
}
EVALUATED = {
    "eps": "1/50",
    "stages": ("ibp", "crown"),
    "attack": "margin",
    "attack_steps": 1,
    "attack_step": 1.0,
    "attack_restarts": 2,
}
ELSEWHERE = [
    "teacher", "plugins", "dataset", "own_data", "checkpoint", "source", "train_images", "validation_images",
    *(f"train.{name}" for name in ("kappa", "kappa_start", "l1", "accumulate", "clip_norm", "ema_decay")),
    *(f"train.{name}" for name in ("regularise_equilibria", "recompute_statistics", "precision", "compile")),
    "split", "test_images", "batch_size", "certificates",
    "stage_seconds", "bab_seconds", "bab_branches", "bab_total_seconds",
]  # fmt: skip
OTHER_VALUES = TRAINED | {"train.kappa": 0.5, "train.kappa_start": 0.5, "train.regularise_equilibria": False}
IGNORED = sorted((method, name) for method in METHODS for name in make_method(method, {}).ignored())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function of a config to the network that its training ends with, as one tensor."""
    configs = {}

    @cache
    def once(text):
        config = configs[text]
        data = load(config.dataset).train
        network_dir = tmp_path_factory.mktemp("network")
        network = train(config, data.images[:128], data.labels[:128], network_dir, lambda row: None)
        return torch.cat([value.flatten().float() for value in network.state_dict().values()])

    def train_once(config):
        configs[repr(config)] = config
        return once(repr(config))

    return train_once


def base(tiny_training, method="mtl-ibp", model="cerdeq"):
    """A small training in which every setting of TRAINED has something to change."""
    few = {"iterations": 3, "backward_iterations": 2, "early_iterations": 1}
    options = few if model == "cerdeq" else {}
    attack = {"attack_steps": 1} if "attack_steps" in method_options(method) else {}
    recipe = RECIPE | {"eps": Radius("1/10")}
    return tiny_training(model, train=recipe, method=method, options=options, method_options=attack, width=0.05)


def changed(config, name, value):
    section, _, field = name.rpartition(".")
    if section:
        value = getattr(config, section).replace(**{field: value})
    options = {"model": {"options": {}}, "method": {"method_options": {}}}.get(name, {})
    return config.replace(**{section or field: value}, **options)


def test_every_setting_stands_in_a_table():
    own = Training.model_fields.keys() - {"train", "named", "entry_label"}
    names = [*own, *(f"train.{name}" for name in Recipe.model_fields), *Evaluation.model_fields]
    assert sorted([*TRAINED, *EVALUATED, *ELSEWHERE]) == sorted(names)


@pytest.mark.parametrize("name", TRAINED)
def test_a_setting_changes_what_is_trained(tiny_training, trained, name):
    config = base(tiny_training, model="cerdeq" if name in ("model", "options") else "cnn5")
    one, other = trained(config), trained(changed(config, name, TRAINED[name]))
    assert one.shape != other.shape or not torch.equal(one, other)


def test_the_same_training_leads_to_the_same_network(tiny_training, trained):
    """Else the tests here could not fail."""
    config = base(tiny_training)
    assert torch.equal(trained(config), trained(config.replace(named=("width",))))


def test_a_setting_changes_how_a_network_is_evaluated(tiny_evaluation):
    evaluation, network = tiny_evaluation(eps="1/100"), build("cnn5", "digits", 0.1).eval().double()
    images = load("digits").test.images[:20]
    with torch.no_grad():
        labels = network(images.double() / 255).argmax(1)  # all right, so that all are attacked and bounded

    def verdicts(**changes):
        settings = evaluation.replace(**changes)
        return evaluate_images(prepare_network(network, settings.stages, 10), images, labels, 0, settings).verdicts

    one = verdicts()
    assert one.equals(verdicts())
    for name, value in EVALUATED.items():
        assert not one.equals(verdicts(**{name: value})), name


@pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param(*case, marks=() if case[0] == "plain" else pytest.mark.slow)
        for case in IGNORED
        if not (case[0] == "plain" and case[1].startswith("kappa"))  # it adds the same loss up in two parts and rounds
    ],
)
def test_what_a_method_ignores_changes_nothing(tiny_training, trained, method, name):
    config = base(tiny_training, method, "cnn5")
    other = changed(config, f"train.{name}", OTHER_VALUES[f"train.{name}"])
    assert torch.equal(trained(config), trained(other))
