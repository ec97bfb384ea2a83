"""Every setting of a trial changes the trial or its evaluation, as every one changes its key (test_trial_config.py).

A new field of harness/config fails here until it stands in one of the tables: TRAINED and JUDGED are checked here on
a small trial, ELSEWHERE names the test that does. What a method ignores, `Method.ignored`, is checked to be ignored.
"""

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch
from steppers import stepper_of

from baselines import build
from harness.config.settings import EvaluationSettings, TrainSettings
from harness.config.trial import TrialConfig
from harness.data import load
from harness.evaluation.verdicts import evaluate
from harness.methods import METHODS, make_method, method_options
from harness.training.loop import train

TESTS = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
RECIPE = {"epochs": 3, "batch_size": 64, "ramp_start": 1, "ramp_epochs": 2, "decay_epochs": (1,), "learning_rate": 5e-3}
TRAINED = {
    "eps": "1/4",
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
    "train.eps": "1/4",
    "train.kappa": 0.5,
    "train.l1": 1e-3,
    "train.accumulate": 2,
    "train.clip_norm": 1e-3,
    "train.regularisation": 0.0,
    "train.regularise_equilibria": False,
    "train.ema_decay": 0.5,
    "train.recompute_statistics": True,
    "train.precision": "bf16",
    "train.initialisation": "default",
}
JUDGED = {
    "evaluation.stages": ("ibp", "crown"),
    "evaluation.attack": "margin",
    "evaluation.attack_steps": 1,
    "evaluation.attack_step": 1.0,
    "evaluation.attack_restarts": 2,
}
ELSEWHERE = {
    "sweep": ("where a trial lies", "launch/test_whole_sweep.py"),
    "plugins": ("whose code runs", "config/test_trial_config.py"),
    "profile": ("which section it stands in", "analysis/test_leaderboard.py"),
    "dataset": ("what is loaded", "data/test_real_data.py"),
    "train_images": ("which images", "data/test_splits.py"),
    "validation_images": ("which images", "data/test_splits.py"),
    "train.compile": ("moves rounding alone", "training/test_compilation.py"),
    "evaluation.test_images": ("which images", "data/test_splits.py"),
    "evaluation.batch_size": ("moves memory alone", "evaluation/test_verdicts.py"),
    "evaluation.bab_seconds": ("branch and bound", "evaluation/test_branching.py"),
    "evaluation.bab_branches": ("branch and bound", "evaluation/test_branching.py"),
    "evaluation.certificates": ("what is kept", "evaluation/test_branching.py"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function of a config to the network that its training ends with, as one tensor."""

    @cache
    def once(text):
        config = configs[text]
        data = load(config.dataset)
        images, labels = data.train.images[:128], data.train.labels[:128]
        network = train(config, images, labels, tmp_path_factory.mktemp("trial"), CPU, lambda row: None)
        return torch.cat([value.flatten().float() for value in network.state_dict().values()])

    configs = {}

    def of(config):
        configs[repr(config)] = config
        return once(repr(config))

    return of


def base(tiny_trial, method="mtl-ibp", model="cerdeq"):
    """A small trial in which every setting of TRAINED has something to change."""
    options = {"early_iterations": 4} if model == "cerdeq" else {}
    attack = {"attack_steps": 1} if "attack_steps" in method_options(method) else {}
    given = {"method": method, "options": options, "method_options": attack, "eps": "1/10"}
    return tiny_trial(model, train=RECIPE, **given)


def changed(config, name, value):
    section, _, field = name.rpartition(".")
    if section:
        value = dataclasses.replace(getattr(config, section), **{field: value})
    options = {"model": {"options": {}}, "method": {"method_options": {}}}.get(name, {})
    return dataclasses.replace(config, **{section or field: value}, **options)


def test_every_setting_stands_in_a_table():
    names = {field.name for field in dataclasses.fields(TrialConfig)} - {"train", "evaluation"}
    for section, kind in {"train": TrainSettings, "evaluation": EvaluationSettings}.items():
        names |= {f"{section}.{field.name}" for field in dataclasses.fields(kind)}
    assert sorted([*TRAINED, *JUDGED, *ELSEWHERE]) == sorted(names)


def test_what_is_checked_elsewhere_is_named_there():
    for name, (_, path) in ELSEWHERE.items():
        assert name.rpartition(".")[2] in (TESTS / path).read_text(), name


@pytest.mark.parametrize("name", TRAINED)
def test_a_setting_changes_what_is_trained(tiny_trial, trained, name):
    config = base(tiny_trial)
    one, other = trained(config), trained(changed(config, name, TRAINED[name]))
    assert one.shape != other.shape or not torch.equal(one, other)


def test_the_same_trial_is_trained_to_the_same_network(tiny_trial, trained):
    """Else the tests here could not fail."""
    config = base(tiny_trial)
    assert torch.equal(trained(config), trained(dataclasses.replace(config, sweep="another")))


@pytest.mark.parametrize("name", JUDGED)
def test_a_setting_changes_how_a_network_is_judged(tiny_trial, name):
    torch.manual_seed(0)
    config = tiny_trial(eps="1/100")
    network = build("cnn5", "digits", 0.1).eval().double()
    data = load("digits")
    images, labels = data.test.images[:20], data.test.labels[:20]
    with torch.no_grad():
        labels = network(images.double() / 255).argmax(1)  # all right, so that all are attacked and bounded
    tables = [
        evaluate(network, images, labels, each).verdicts for each in (config, changed(config, name, JUDGED[name]))
    ]
    assert not tables[0].equals(tables[1])
    again = evaluate(network, images, labels, config).verdicts
    assert tables[0].equals(again)


IGNORED = {(method, name) for method in METHODS for name in make_method(method, {}).ignored()}
BY_METHODS = [(method, name) for method in METHODS for name in ("regularisation", "kappa", "eps", "ramp_epochs")]


@pytest.mark.parametrize(("method", "name"), sorted(IGNORED - {("plain", "kappa")}))
def test_what_a_method_ignores_changes_nothing(tiny_trial, trained, method, name):
    config = base(tiny_trial, method, "cnn5")
    other = changed(config, f"train.{name}", TRAINED[f"train.{name}"])
    assert torch.equal(trained(config), trained(other))


def test_kappa_of_plain_adds_the_same_up_in_two_parts(tiny_trial):
    """To rounding, which Adam makes much of where gradients are 0."""
    losses = []
    for kappa in (0.0, 0.5):
        stepper = stepper_of(tiny_trial(method="plain", train={"kappa": kappa}))
        x, labels = stepper.images[:32].float() / 255, stepper.labels[:32]
        losses.append(stepper.losses["plain"](x, labels, torch.tensor(0.01))[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(("method", "name"), [pair for pair in BY_METHODS if pair not in IGNORED])
def test_what_it_does_not_ignore_changes_something(tiny_trial, trained, method, name):
    config = base(tiny_trial, method, "cnn5")
    other = changed(config, f"train.{name}", TRAINED[f"train.{name}"])
    assert not torch.allclose(trained(config), trained(other), rtol=1e-4, atol=1e-5)
