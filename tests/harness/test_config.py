"""Sweep files: what is wrong is told in one message, before anything starts; what is right arrives unchanged."""

import copy
import dataclasses
import fcntl
import itertools
import os
import socket
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch.nn.functional as F
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from baselines import DATASETS
from cerdeq.bounds import operators
from harness import folder, run
from harness.config import ConfigError, load_sweep
from harness.data import load
from harness.settings import EvaluationSettings, TrainSettings, TrialConfig, from_dict, parse_eps, to_dict, trial_key

PROJECT = Path(__file__).resolve().parents[2]
SWEEPS = sorted((PROJECT / "sweeps").glob("*.yaml"))
BASE = {
    "name": "study",
    "dataset": "digits",
    "eps": "1/16",
    "seeds": [0, 1],
    "train": {"epochs": 4, "batch_size": 64, "ramp_start": 1, "ramp_epochs": 2, "decay_epochs": [3]},
    "trials": [{"model": "cnn5", "method": "ibp"}, {"model": "cerdeq", "method": "ibp"}],
}


def changed(*changes, remove=()):
    """BASE with (dotted key, value) pairs set and keys removed."""
    content = copy.deepcopy(BASE)
    for key, value in changes:
        *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        place = content
        for part in path:
            place = place[part] if isinstance(place, list) else place.setdefault(part, {})
        place[last] = value
    for key in remove:
        del content[key]
    return content


def write(directory, content, name="study.yaml"):
    path = directory / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def nothing_starts(monkeypatch, tmp_path):
    """Ray and MLflow cannot be imported by the command, nor the network reached; the working directory is empty."""
    for module in ("harness.sweep", "harness.tracking"):
        monkeypatch.setitem(sys.modules, module, None)
    for variable in ("CERDEQ_DATA", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)

    def blocked(*_args, **_kwargs):
        raise OSError("blocked by the test")

    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def refused(nothing_starts, capsys, tmp_path):
    """A function of a sweep file and options to the message of a command that must exit with 2."""

    def refuse(path, *options):
        status = run.main([str(path), "--results-dir", str(tmp_path / "results"), *options])
        captured = capsys.readouterr()
        assert status == 2
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert "Traceback" not in captured.err
        return captured.err

    return refuse


def trials_of(tmp_path, content, profile="full", has_gpu=True):
    return load_sweep(write(tmp_path, content), profile, has_gpu).trials


# What each bad file's message must hold, besides the file's name: the key, what was found, what is allowed.
UNKNOWN_KEYS = {
    "top level": (("epochs", 3), ["epochs: unknown key", "train", "profiles"]),
    "train": (("train.learning_rates", 0.1), ["train.learning_rates: unknown key", "learning_rate", "epochs"]),
    "evaluation": (("evaluation.attack", 1), ["evaluation.attack: unknown key", "attack_steps"]),
    "trial": (("trials.1.modle", "cnn5"), ["trials.1.modle: unknown key", "model", "method", "options", "width"]),
    "resources": (("resources.gpus", 1), ["resources.gpus: unknown key", "cpu", "gpu"]),
    "option of a network without": (
        ("trials.0", {"model": "resnet9", "method": "ibp", "options": {"depth": 5}}),
        ["trials.0.options.depth", "resnet9", "none"],
    ),
    "option of a recurrence without one": (
        ("trials.1.options", {"recurrent": False, "margin": 0.2}),
        ["trials.1.options: recurrent", "margin"],
    ),
    "groups that do not divide": (
        ("trials.1.options", {"parametrisation": "orthogonal", "groups": 5}),
        ["trials.1.options: groups", "found 5"],
    ),
    "option": (("trials.1.options", {"margins": 0.2}), ["trials.1.options.margins", "cerdeq", "margin", "gain"]),
    "profile": (("profiles", {"cpu": {"seed": [0]}}), ["seed: unknown key", "seeds", "cpu"]),
    "a trial's recipe": (
        ("trials.1.train", {"epoch": 3}),
        ["trials.1.train.epoch: unknown key", "epochs", "clip_norm"],
    ),
    "inside a profile": (("profiles", {"cpu": {"train": {"epoch": 1}}}), ["train.epoch: unknown key", "epochs", "cpu"]),
    "a number as key": (("5", 1), ["5: unknown key"]),
}
WRONG_TYPES = {
    "a list for train": (("train", [1]), ["train: found [1]"]),
    "nothing for train": (("train", None), ["train: found None"]),
    "a text for an integer": (("train.epochs", "3"), ["train.epochs: found '3'", "integer"]),
    "a bool for an integer": (("train.epochs", True), ["train.epochs: found True", "integer"]),
    "a fraction for an integer": (("train.epochs", 2.5), ["train.epochs: found 2.5", "integer"]),
    "a text for a number": (("train.learning_rate", "5e-4x"), ["train.learning_rate: found '5e-4x'", "number"]),
    "a bool for a number": (("train.learning_rate", True), ["train.learning_rate: found True", "number"]),
    "a bool for a number, 2": (("train.regularisation", False), ["train.regularisation: found False", "number"]),
    "a number for a list": (("train.decay_epochs", 3), ["train.decay_epochs: found 3"]),
    "texts in a list": (("train.decay_epochs", ["3"]), ["train.decay_epochs.0: found '3'", "integer"]),
    "a number for a text": (("train.precision", 32), ["train.precision: found 32", "string"]),
    "a mapping for a list": (("trials", {"model": "cnn5"}), ["trials: found {'model': 'cnn5'}"]),
    "a text for a list": (("trials", "cnn5"), ["trials: found 'cnn5'"]),
    "a text for a trial": (("trials.0", "cnn5"), ["trials.0: found 'cnn5'"]),
    "a number for seeds": (("seeds", 3), ["seeds: found 3"]),
    "texts for seeds": (("seeds", ["0"]), ["seeds.0: found '0'", "integer"]),
    "bools for seeds": (("seeds", [True]), ["seeds.0: found True", "integer"]),
    "fractions for seeds": (("seeds", [0.5]), ["seeds.0: found 0.5", "integer"]),
    "a number for a name": (("name", 5), ["name: found 5", "string"]),
    "a text for width": (("width", "wide"), ["width: found 'wide'", "number"]),
    "a bool for width": (("width", True), ["width: found True", "number"]),
    "a trial's width": (("trials.0.width", "1"), ["trials.0.width: found '1'", "number"]),
    "nothing for a trial's recipe": (("trials.0.train", None), ["trials.0.train: found None"]),
    "a text in a trial's recipe": (
        ("trials.0.train", {"epochs": "3"}),
        ["trials.0.train.epochs: found '3'", "integer"],
    ),
    "a bool in a trial's recipe": (("trials.0.train", {"clip_norm": True}), ["trials.0.train.clip_norm: found True"]),
    "a text in a trial's list": (
        ("trials.0.train", {"decay_epochs": ["3"]}),
        ["trials.0.train.decay_epochs.0: found '3'"],
    ),
    "a list for options": (("trials.1.options", [1]), ["trials.1.options: found [1]"]),
    "an option's text": (("trials.1.options", {"margin": "x"}), ["trials.1.options.margin: found 'x'", "number"]),
    "an option's bool": (("trials.1.options", {"margin": True}), ["trials.1.options.margin: found True", "number"]),
    "an option of a method without": (
        ("trials.0.method_options", {"loss_fusion": True}),
        ["trials.0.method_options.loss_fusion", "ibp", "none"],
    ),
    "a method's option": (
        ("trials.0", {"model": "cnn5", "method": "crown-ibp", "method_options": {"fusion": True}}),
        ["trials.0.method_options.fusion", "crown-ibp", "loss_fusion", "final_beta"],
    ),
    "a method's option of another type": (
        ("trials.0", {"model": "cnn5", "method": "crown-ibp", "method_options": {"loss_fusion": 1}}),
        ["trials.0.method_options.loss_fusion: found 1"],
    ),
    "an attack's option out of range": (
        ("trials.0", {"model": "cnn5", "method": "mtl-ibp", "method_options": {"attack_steps": 0}}),
        ["trials.0.method_options", "attack_steps", "at least 1", "0"],
    ),
    "an infinite option of a method": (
        ("trials.0", {"model": "cnn5", "method": "mtl-ibp", "method_options": {"attack_radius": float("inf")}}),
        ["trials.0.method_options.attack_radius: found inf", "finite"],
    ),
    "a share out of range": (
        ("trials.0", {"model": "cnn5", "method": "sabr", "method_options": {"subselection": 1.2}}),
        ["trials.0.method_options", "subselection", "(0, 1]", "1.2"],
    ),
    "the option of another method": (
        ("trials.0", {"model": "cnn5", "method": "plain", "method_options": {"alpha": 0.5}}),
        ["trials.0.method_options.alpha", "plain", "none"],
    ),
    "a radius to train for": (("train.eps", "9/8"), ["train.eps: found '9/8'", "at most 1"]),
    "a share of the clean loss": (("train.kappa", 1.5), ["train.kappa: found 1.5", "from 0 to 1"]),
    "parts that do not divide": (("train.accumulate", 3), ["train.accumulate: found 3", "a divisor of batch_size"]),
    "an average of nothing": (("train.ema_decay", 1.0), ["train.ema_decay: found 1.0", "below 1"]),
    "a method's option out of range": (
        ("trials.0", {"model": "cnn5", "method": "crown-ibp", "method_options": {"final_beta": 1.5}}),
        ["trials.0.method_options", "final_beta", "[0, 1]", "1.5"],
    ),
    "bounds in another order": (
        ("evaluation.methods", ["crown-ibp", "ibp"]),
        ["evaluation.methods", "['crown-ibp', 'ibp']", "in order"],
    ),
    "unknown bounds": (("evaluation.methods", ["ibp", "lp"]), ["evaluation.methods", "'lp'", "alpha-crown"]),
    "bounds without ibp": (("evaluation.methods", ["crown"]), ["evaluation.methods", "ibp"]),
    "an option's integer": (("trials.1.options", {"iterations": 1.5}), ["trials.1.options.iterations: found 1.5"]),
    "cpu in parts": (("resources.cpu", 1.5), ["resources.cpu: found 1.5", "integer"]),
    "a bool for gpu": (("resources.gpu", True), ["resources.gpu: found True", "number"]),
    "a text for gpu": (("resources.gpu", "half"), ["resources.gpu: found 'half'", "number"]),
    "a text for images": (("train_images", "all"), ["train_images: found 'all'", "integer"]),
    "a bool for images": (("train_images", True), ["train_images: found True", "integer"]),
    "a text for test images": (("evaluation.test_images", "all"), ["evaluation.test_images: found 'all'", "integer"]),
    "a list for profiles": (("profiles", [1]), ["profiles: found [1]", "mapping"]),
    "an empty list for profiles": (("profiles", []), ["profiles: found []", "mapping"]),
    "false for profiles": (("profiles", False), ["profiles: found False", "mapping"]),
    "a list for a profile": (("profiles", {"cpu": [1]}), ["profiles", "[1]", "mapping"]),
    "nothing for a profile": (("profiles", {"cpu": None}), ["profiles", "None", "mapping"]),
}
BAD_EPS = {
    repr(value): (("eps", value), ["eps: found", repr(str(value)) if isinstance(value, float | int) else repr(value)])
    for value in ("abc", "", "8/0", "0/255", "-8/255", "256/255", "1/2/3", 0, 0.0, -0.1, 2, 1.0001)
} | {
    "a bool": (("eps", True), ["eps: found True", "fraction"]),
    "a list": (("eps", [8, 255]), ["eps: found [8, 255]", "fraction"]),
    "nothing": (("eps", None), ["eps: found None", "fraction"]),
    "nan": (("eps", float("nan")), ["eps: found", "fraction"]),
    "infinite": (("eps", float("inf")), ["eps: found", "fraction"]),
}
OUT_OF_RANGE = {
    "no epochs": (("train.epochs", 0), ["train.epochs: found 0", "at least 1"]),
    "negative epochs": (("train.epochs", -3), ["train.epochs: found -3", "at least 1"]),
    "a batch of one": (("train.batch_size", 1), ["train.batch_size: found 1", "at least 2"]),
    "no rate": (("train.learning_rate", 0), ["train.learning_rate: found 0", "above 0"]),
    "a rate of nan": (("train.learning_rate", float("nan")), ["train.learning_rate: found nan", "above 0"]),
    "a ramp longer than training": (("train.ramp_epochs", 5), ["train.ramp_epochs: found 5", "5 exceeds epochs = 4"]),
    "a ramp that starts too late": (("train.ramp_start", 4), ["train.ramp", "5 exceeds epochs = 4"]),
    "no ramp start": (("train.ramp_start", 0), ["train.ramp_start: found 0", "at least 1"]),
    "a negative ramp": (("train.ramp_epochs", -1), ["train.ramp_epochs: found -1", "at least 0"]),
    "decay after training": (("train.decay_epochs", [2, 5]), ["train.decay_epochs: found [2, 5]", "epochs = 4"]),
    "decay before training": (("train.decay_epochs", [0]), ["train.decay_epochs: found [0]", "between 1"]),
    "decay backwards": (("train.decay_epochs", [3, 2]), ["train.decay_epochs: found [3, 2]", "increasing"]),
    "decay twice": (("train.decay_epochs", [3, 3]), ["train.decay_epochs: found [3, 3]", "increasing"]),
    "decay to nothing": (("train.decay_factor", 0), ["train.decay_factor: found 0", "above 0"]),
    "no gradient": (("train.clip_norm", 0), ["train.clip_norm: found 0", "above 0"]),
    "infinite clipping": (("train.clip_norm", float("inf")), ["train.clip_norm: found inf"]),
    "negative regularisation": (("train.regularisation", -1), ["train.regularisation: found -1", "at least 0"]),
    "nan regularisation": (("train.regularisation", float("nan")), ["train.regularisation: found nan"]),
    "infinite regularisation": (("train.regularisation", float("inf")), ["train.regularisation: found inf"]),
    "an unknown precision": (("train.precision", "fp8"), ["train.precision: found 'fp8'", "tf32", "float32", "bf16"]),
    "an unknown initialisation": (
        ("train.initialisation", "kaiming"),
        ["train.initialisation: found 'kaiming'", "'ibp'", "'default'"],
    ),
    "no seeds": (("seeds", []), ["seeds: found []", "at least 1"]),
    "a negative seed": (("seeds", [-1]), ["seeds.0: found -1", "greater than or equal to 0"]),
    "a seed too large for torch": (("seeds", [2**64]), ["seeds.0: found"]),
    "a seed whose draws are too large for torch": (("seeds", [2**50]), ["seeds.0: found"]),
    "no gradient in a trial": (("trials.1.train", {"clip_norm": 0}), ["trials.1.train.clip_norm: found 0", "or null"]),
    "a trial's recipe that does not fit the sweep's": (
        ("trials.0.train", {"epochs": 2}),
        ["trials.0.train.decay_epochs: found [3]", "epochs = 2"],
    ),
    "no width": (("width", 0), ["width: found 0", "greater than 0"]),
    "nan width": (("width", float("nan")), ["width: found nan"]),
    "infinite width": (("width", float("inf")), ["width: found inf"]),
    "a width no memory holds": (("width", 1e9), ["width"]),
    "a trial's infinite width": (("trials.0.width", float("inf")), ["trials.0.width: found inf"]),
    "no train images": (("train_images", 0), ["train_images: found 0", "greater than or equal to 1"]),
    "negative validation images": (("validation_images", -1), ["validation_images: found -1"]),
    "no test images": (("evaluation.test_images", 0), ["evaluation.test_images: found 0", "at least 1"]),
    "no attack": (("evaluation.attack_steps", 0), ["evaluation.attack_steps: found 0", "at least 1"]),
    "no restart": (("evaluation.attack_restarts", 0), ["evaluation.attack_restarts: found 0", "at least 1"]),
    "empty batches": (("evaluation.batch_size", 0), ["evaluation.batch_size: found 0", "at least 1"]),
    "no cpu": (("resources.cpu", 0), ["resources.cpu: found 0", "greater than or equal to 1"]),
    "negative gpu": (("resources.gpu", -1), ["resources.gpu: found -1", "greater than or equal to 0"]),
    "one and a half gpus, which Ray refuses": (("resources.gpu", 1.5), ["resources.gpu: found 1.5"]),
    "infinite gpu": (("resources.gpu", float("inf")), ["resources.gpu: found inf"]),
    "no trials": (("trials", []), ["trials: found []", "at least 1"]),
    "an option out of range": (("trials.1.options", {"margin": 2}), ["trials.1.options", "margin", "(0, 1)", "2"]),
    "an option's unknown name": (("trials.1.options", {"parametrisation": "perro"}), ["trials.1", "perro", "perron"]),
    "no iterations": (("trials.1.options", {"iterations": 0}), ["trials.1.options", "iterations", "at least 1"]),
    "an infinite margin": (("trials.1.options", {"margin": float("inf")}), ["trials.1.options", "margin"]),
}
UNKNOWN_NAMES = {
    "network": (("trials.1.model", "cerdeqq"), ["trials.1.model: found 'cerdeqq'", "'cerdeq'?", "cnn7"]),
    "network like nothing": (("trials.0.model", "zzzz"), ["trials.0.model: found 'zzzz'", "cnn7"]),
    "a number for a network": (("trials.0.model", 7), ["trials.0.model: found 7", "cnn7"]),
    "a list for a network": (("trials.0.model", ["cnn7"]), ["trials.0.model: found ['cnn7']", "cnn7"]),
    "method": (("trials.0.method", "ibpp"), ["trials.0.method: found 'ibpp'", "'ibp'?"]),
    "data set": (("dataset", "cifar-10"), ["dataset: found 'cifar-10'", "'cifar10'?", *DATASETS]),
}
MISSING = {key: (None, [f"{key}: missing"]) for key in ("name", "dataset", "eps", "seeds", "trials")}
NAMES = {"too long for a file": (("name", "a" * 300), ["name: found 'aaa"])} | {
    repr(name): (("name", name), [f"name: found {name!r}"])
    for name in ("../x", "/abs", "a/b", "..", ".", "", ".hidden", "a..b", "a\\b", "x\n", "x y", "~")
}
BAD = {
    f"{kind}: {name}": case
    for kind, cases in {
        "unknown key": UNKNOWN_KEYS,
        "type": WRONG_TYPES,
        "eps": BAD_EPS,
        "range": OUT_OF_RANGE,
        "unknown name": UNKNOWN_NAMES,
        "missing": MISSING,
        "name": NAMES,
    }.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("case", BAD)
def test_bad_content_exits_with_a_message(refused, tmp_path, case):
    change, expected = BAD[case]
    content = changed(change) if change else changed(remove=[case.removeprefix("missing: ")])
    path = write(tmp_path, content)
    message = refused(path)
    assert str(path) in message
    for part in expected:
        assert part in message, message
    assert not (tmp_path / "results").exists()


def test_all_problems_are_told_at_once(refused, tmp_path):
    content = changed(("train.epochs", "3"), ("epochs", 1), ("trials.0.model", "cnn6x"), ("eps", "8/0"))
    message = refused(write(tmp_path, content))
    for key in ("train.epochs", "epochs: unknown", "trials.0.model", "eps"):
        assert key in message
    assert message.count("study.yaml") == 4


TEXTS = {
    "empty": ("", ["found nothing", "mapping"]),
    "only a comment": ("# nothing\n", ["found nothing", "mapping"]),
    "a list": ("- name: x\n", ["found list", "mapping"]),
    "a word": ("quickstart\n", ["found str", "mapping"]),
    "not YAML": ("name: [unclosed\n", ["is not YAML", "line 2"]),
    "a tab": ("name:\n\t- x\n", ["is not YAML"]),
    "a key twice": (yaml.safe_dump(BASE) + "name: other\n", ["'name'", "twice"]),
    "a key twice inside": ("name: x\ntrain: {epochs: 3, epochs: 4}\n", ["'epochs'", "twice", "line 2"]),
    "two documents": ("name: x\n---\nname: y\n", ["is not YAML"]),
    "a Python object": ("name: !!python/object/apply:os.system ['true']\n", ["is not YAML"]),
    "a mapping as a key": ("? {a: 1}\n: 2\n", ["is not YAML", "key"]),
    "itself inside": (yaml.safe_dump(BASE) + "resources: &x {cpu: *x}\n", ["resources"]),
    "a date as a key": (yaml.safe_dump(BASE) + "2026-11-20: x\n", ["2026-11-20", "unknown key"]),
    "null bytes": ("name: a\0b\n", ["is not YAML"]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_that_are_no_sweep(refused, tmp_path, case):
    text, expected = TEXTS[case]
    path = write(tmp_path, text)
    message = refused(path)
    assert str(path) in message
    for part in expected:
        assert part in message, message


def test_a_missing_file_a_directory_and_bytes_that_are_no_text(refused, tmp_path):
    assert "nowhere.yaml: cannot be read: No such file" in refused(tmp_path / "nowhere.yaml")
    assert f"{tmp_path}: cannot be read: Is a directory" in refused(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: é\n".encode("latin-1"))
    assert "latin.yaml: cannot be read: 'utf-8'" in refused(tmp_path / "latin.yaml")


DUPLICATES = {
    "the same": ({"model": "cnn5", "method": "ibp"}, "trials.2", "trials.0"),
    "defaults spelled out": (
        {"model": "cerdeq", "method": "ibp", "options": {"margin": 0.3, "parametrisation": "perron"}},
        "trials.2",
        "trials.1",
    ),
    "a default as an integer": ({"model": "cnn5", "method": "ibp", "width": 1}, "trials.2", "trials.0"),
    "empty options": ({"model": "cnn5", "method": "ibp", "options": {}}, "trials.2", "trials.0"),
    "the sweep's recipe spelled out": (
        {"model": "cnn5", "method": "ibp", "train": {"epochs": 4, "clip_norm": 10}},
        "trials.2",
        "trials.0",
    ),
    "the sweep's eps spelled out": (
        {"model": "cnn5", "method": "ibp", "train": {"eps": 0.0625}},
        "trials.2",
        "trials.0",
    ),
}


@pytest.mark.parametrize("case", DUPLICATES)
def test_duplicate_trials(refused, tmp_path, case):
    extra, key, same = DUPLICATES[case]
    message = refused(write(tmp_path, changed(("trials", [*BASE["trials"], extra]))))
    assert f"{key}: " in message
    assert f"the same trial as {same}" in message


def test_duplicate_seeds(refused, tmp_path):
    message = refused(write(tmp_path, changed(("seeds", [0, 1, 0, 2, 1]))))
    assert "seeds: 0 appears twice" in message
    assert "seeds: 1 appears twice" in message
    assert "seeds: 2" not in message


def test_spelling_a_default_out_does_not_change_the_key(tmp_path):
    """The key is of the resolved config: else the same trial is trained again, and a changed default is not seen."""
    short = changed(("trials", [{"model": "cerdeq", "method": "ibp"}]))
    long = changed(("trials", [{"model": "cerdeq", "method": "ibp", "options": {"margin": 0.3, "gain": 0.5}}]))
    keys = [[trial_key(trial, "data") for trial in trials_of(tmp_path, content)] for content in (short, long)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("one", "other"), [(0.25, "1/4"), ("8/255", "16/510"), ("3/255", "1/85"), ("8/255", " 8/255 "), (1, "1.0")]
)
def test_writing_eps_another_way_does_not_change_the_key(tmp_path, one, other):
    """The results directory takes the two for one sweep, so that the same trials would stand in its table twice."""
    trials = [trials_of(tmp_path, changed(("eps", eps)))[0] for eps in (one, other)]
    assert parse_eps(trials[0].eps) == parse_eps(trials[1].eps)
    assert trial_key(trials[0], "data") == trial_key(trials[1], "data")


@pytest.mark.parametrize("has_gpu", [True, False])
@pytest.mark.parametrize("asked", [None, "full", "good", "bad"])
def test_a_bad_profile_is_told_though_another_is_chosen(tmp_path, has_gpu, asked):
    path = write(tmp_path, changed(("profiles", {"good": {}, "bad": {"train": {"epochs": -3}}})))
    with pytest.raises(ConfigError, match=r"train.epochs: found -3.*bad"):
        load_sweep(path, asked, has_gpu)


def test_a_profile_whose_parts_do_not_fit_the_rest(tmp_path):
    path = write(tmp_path, changed(("profiles", {"short": {"train": {"epochs": 2}}})))
    with pytest.raises(ConfigError, match=r"train.decay_epochs: found \[3\].*epochs = 2.*short"):
        load_sweep(path, None, True)


def test_duplicates_that_only_a_profile_makes(tmp_path):
    path = write(tmp_path, changed(("profiles", {"twice": {"seeds": [4, 4]}})))
    with pytest.raises(ConfigError, match=r"seeds: 4 appears twice.*twice"):
        load_sweep(path, None, True)


@pytest.mark.parametrize("key", ["name", "dataset", "eps", "profiles"])
def test_a_profile_cannot_change_what_the_sweep_is(tmp_path, key):
    path = write(tmp_path, changed(("profiles", {"cpu": {key: BASE.get(key, {})}})))
    with pytest.raises(ConfigError, match=rf"profiles\.cpu\.{key}"):
        load_sweep(path, None, True)


def test_no_profile_may_be_called_full(tmp_path):
    with pytest.raises(ConfigError, match=r"profiles\.full"):
        load_sweep(write(tmp_path, changed(("profiles", {"full": {}}))), None, True)


def test_an_unknown_profile(refused, tmp_path):
    path = write(tmp_path, changed(("profiles", {"cpu": {}, "small": {}})))
    message = refused(path, "--profile", "smal")
    for part in (str(path), "'smal'", "'small'?", "full", "cpu"):
        assert part in message


def test_an_unknown_profile_where_one_is_called_by_a_number(refused, tmp_path):
    message = refused(write(tmp_path, changed(("profiles", {2: {}}))), "--profile", "3")
    assert "'3'" in message or "profiles" in message


def test_a_profile_called_by_a_number_is_refused_or_can_be_chosen(tmp_path):
    path = write(tmp_path, changed(("profiles", {2: {"seeds": [7]}})))
    try:
        sweep = load_sweep(path, "2", True)
    except ConfigError as error:
        assert "profiles" in str(error)
    else:
        assert {trial.seed for trial in sweep.trials} == {7}


# Bad input that shows only with the data or the results directory at hand.


def test_a_batch_larger_than_the_data(refused, tmp_path):
    message = refused(write(tmp_path, changed(("train_images", 50))))
    for part in (str(tmp_path), "trials.0.train.batch_size", "found 64", "at most the 50"):
        assert part in message


def test_a_trial_s_batch_larger_than_the_data(refused, tmp_path):
    message = refused(write(tmp_path, changed(("train_images", 100), ("trials.1.train", {"batch_size": 101}))))
    assert "trials.0" not in message
    for part in ("trials.1.train.batch_size", "found 101", "at most the 100"):
        assert part in message


def test_a_batch_larger_than_what_validation_leaves(refused, tmp_path):
    message = refused(write(tmp_path, changed(("validation_images", 1400))))
    for part in ("train.batch_size", "found 64", "37"):
        assert part in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("train_images", 1438), ["train_images", "at most 1437", "1438"]),
        (("validation_images", 1437), ["validation_images", "1437", "1,437"]),
        (("validation_images", 10**6), ["validation_images", "1000000", "1,437"]),
        (("evaluation.test_images", 361), ["test_images", "at most 360", "361"]),
    ],
)
def test_more_images_than_there_are(refused, tmp_path, change, expected):
    path = write(tmp_path, changed(change))
    message = refused(path)
    for part in expected:
        assert part in message, message


def test_data_that_is_missing_and_cannot_be_fetched(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for dataset in ("cifar10", "mnist"):
        message = refused(write(tmp_path, changed(("dataset", dataset))), "--data-dir", str(tmp_path / "empty"))
        for part in (DATASETS[dataset].title, str(tmp_path / "empty"), "--data-dir", "CERDEQ_DATA"):
            assert part in message


def put_trial(directory, **changes):
    """A trial folder in a sweep's directory, as a run would have left it."""
    trial = TrialConfig(**{**dict.fromkeys(("profile", "model", "method"), "x"), "sweep": "study", **changes})
    made = folder.make_trial(trial, "data")
    folder.write_json(folder.place(directory, made.key) / folder.TRIAL, folder.trial_json(made))
    return folder.place(directory, made.key)


@pytest.mark.parametrize(
    "other", [{"eps": "3/16"}, {"dataset": "mnist"}, {"sweep": "quickstart"}], ids=["eps", "data set", "name"]
)
def test_a_results_directory_of_another_sweep(refused, tmp_path, other):
    put_trial(tmp_path / "results/study", **({"dataset": "digits", "eps": "1/16", "seed": 0} | other))
    message = refused(write(tmp_path, BASE))
    for part in (str(tmp_path / "results/study"), "study on digits at eps 1/16", str(next(iter(other.values())))):
        assert part in message


def test_the_same_eps_written_another_way_is_the_same_sweep(nothing_starts, tmp_path):
    put_trial(tmp_path / "results/study", dataset="digits", eps="2/32", seed=0)
    with pytest.raises(ImportError, match=r"harness\.tracking"):  # it goes on to MLflow, which is blocked here
        run.main([str(write(tmp_path, BASE)), "--results-dir", str(tmp_path / "results")])


def test_a_trial_file_that_is_damaged(refused, tmp_path):
    place = put_trial(tmp_path / "results/study", dataset="digits", eps="1/16", seed=0)
    (place / folder.TRIAL).write_text("{")
    assert str(place / folder.TRIAL) in refused(write(tmp_path, BASE))


def test_a_folder_that_holds_another_trial(refused, tmp_path):
    """A folder copied by hand under the wrong name."""
    trial = folder.make_trial(trials_of(tmp_path, BASE)[0], load("digits").fingerprint)
    place = put_trial(tmp_path / "results/study", dataset="digits", eps="1/16", seed=9)
    place.rename(place.with_name(trial.key))
    assert str(place.with_name(trial.key)) in refused(write(tmp_path, BASE))


@pytest.mark.parametrize("text", ["{", "[]", "{}"], ids=["cut off", "a list", "empty"])
def test_a_result_file_that_is_damaged(refused, tmp_path, text):
    trial = folder.make_trial(trials_of(tmp_path, BASE)[0], load("digits").fingerprint)
    place = folder.place(tmp_path / "results/study", trial.key)
    folder.write_json(place / folder.TRIAL, folder.trial_json(trial))
    (place / folder.RESULT).write_text(text)
    assert str(place / folder.RESULT) in refused(write(tmp_path, BASE))


def test_another_run_holds_the_lock(refused, tmp_path):
    directory = tmp_path / "results/study"
    directory.mkdir(parents=True)
    with open(directory / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = refused(write(tmp_path, BASE))
    for part in ("another run", str(directory)):
        assert part in message


def test_a_results_directory_that_is_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(write(tmp_path, BASE), "--results-dir", str(tmp_path / "file"))


def test_an_export_directory_that_is_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(write(tmp_path, BASE), "--export", str(tmp_path / "file"))


def test_a_name_that_is_a_file_in_the_results_directory(refused, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/published.csv").write_text("")
    assert "published.csv" in refused(write(tmp_path, changed(("name", "published.csv"))))


@pytest.fixture(scope="module")
def a_process_of_its_own(tmp_path_factory):
    """Exit statuses, messages and imported modules of commands in a process whose locale knows ASCII alone."""
    directory = tmp_path_factory.mktemp("process")
    bad = write(directory, changed(("train.epochs", 0)), "bad.yaml")
    absent = write(directory, changed(("train_images", 5000)), "absent.yaml")
    umlaut = directory / "umlaut.yaml"
    umlaut.write_bytes(("# größer\n" + yaml.safe_dump(changed(("train.epochs", 0)))).encode())
    script = (
        "import sys\n"
        "from harness.run import main\n"
        f"print([main([path]) for path in {[str(path) for path in (bad, absent, umlaut)]!r}])\n"
        "print([name for name in ('ray', 'mlflow') if name in sys.modules])\n"
    )
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=directory, env=ascii_only, capture_output=True, text=True, timeout=120)
    assert sorted(path.name for path in directory.iterdir()) == ["absent.yaml", "bad.yaml", "umlaut.yaml"]
    return done


def test_ray_and_mlflow_are_not_imported_for_bad_input(a_process_of_its_own):
    assert a_process_of_its_own.stdout.splitlines() == ["[2, 2, 2]", "[]"], a_process_of_its_own.stderr
    assert "bad.yaml: train.epochs: found 0" in a_process_of_its_own.stderr
    assert "train_images" in a_process_of_its_own.stderr


def test_a_file_is_read_as_utf8_whatever_the_locale(a_process_of_its_own):
    assert "umlaut.yaml: train.epochs: found 0" in a_process_of_its_own.stderr


# Good input.


@pytest.mark.parametrize(
    ("text", "value"),
    {
        "5e-4": 5e-4,
        "1E-3": 1e-3,
        "5.0e-4": 5e-4,
        "+1e-2": 0.01,
        "1.5e-1": 0.15,
        "5.e-1": 0.5,
        "1e+0": 1.0,
        "1.5e0": 1.5,
        ".5": 0.5,
        ".5e0": 0.5,
    }.items(),
)
def test_numbers_as_yaml_has_them(tmp_path, text, value):
    """YAML 1.2's core schema: every one of these is a number."""
    content = yaml.safe_dump(BASE).replace("epochs: 4", f"epochs: 4\n  clip_norm: {text}", 1)
    (config, *_) = load_sweep(write(tmp_path, content), None, True).trials
    assert config.train.clip_norm == value
    assert type(config.train.clip_norm) is float


def test_integers_where_numbers_are_wanted(tmp_path):
    content = changed(("train.clip_norm", 5), ("train.regularisation", 0), ("width", 1), ("resources.gpu", 1))
    sweep = load_sweep(write(tmp_path, content), None, True)
    (config, *_) = sweep.trials
    values = (config.train.clip_norm, config.train.regularisation, config.width, sweep.resources.gpu)
    assert values == (5.0, 0.0, 1.0, 1.0)
    assert all(type(value) is float for value in values)


@pytest.mark.parametrize("eps", ["8/255", "2/255", "0.1", "1/3", "1"])
def test_eps_stays_exact(tmp_path, eps):
    (config, *_) = trials_of(tmp_path, changed(("eps", eps)))
    assert parse_eps(config.eps) == Fraction(eps)


def test_an_eps_that_yaml_reads_as_a_number(tmp_path):
    content = yaml.safe_dump(BASE).replace("eps: 1/16", "eps: 0.1")
    (config, *_) = trials_of(tmp_path, content)
    assert parse_eps(config.eps) == Fraction(1, 10)


@hypothesis_settings(
    derandomize=True, deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 2000), st.integers(1, 2000))
def test_a_fraction_is_taken_exactly_or_refused(tmp_path, numerator, denominator):
    path = write(tmp_path, changed(("eps", f"{numerator}/{denominator}")))
    if numerator <= denominator:
        assert {parse_eps(trial.eps) for trial in load_sweep(path, None, True).trials} == {
            Fraction(numerator, denominator)
        }
    else:
        with pytest.raises(ConfigError, match="at most 1"):
            load_sweep(path, None, True)


def test_trials_expand_in_the_file_s_order_seeds_inside(tmp_path):
    content = changed(
        ("seeds", [5, 0, 3]),
        ("trials", [{"model": name, "method": "ibp"} for name in ("deqlate", "cnn7", "cnn5")]),
    )
    found = [(trial.model, trial.seed) for trial in trials_of(tmp_path, content)]
    assert found == list(itertools.product(("deqlate", "cnn7", "cnn5"), (5, 0, 3)))


def test_every_field_reaches_the_trial(tmp_path):
    train = TrainSettings(
        epochs=9,
        batch_size=32,
        learning_rate=0.01,
        decay_epochs=(2, 5),
        decay_factor=0.5,
        ramp_start=3,
        ramp_epochs=4,
        eps="1/8",
        kappa=0.125,
        l1=1e-6,
        accumulate=2,
        ema_decay=0.75,
        recompute_statistics=True,
        clip_norm=5.0,
        regularisation=0.25,
        regularise_equilibria=False,
        precision="float32",
        initialisation="default",
    )
    evaluation = EvaluationSettings(
        methods=("ibp", "crown"), test_images=11, batch_size=12, attack_steps=13, attack_restarts=14
    )
    options = {
        "margin": 0.2,
        "gain": None,
        "iterations": 7,
        "backward_iterations": 8,
        "early_iterations": 2,
        "margin_start": 0.9,
        "parametrisation": "orthogonal",
        "groups": 4,
        "gradient": "unrolled",
        "warm_start": True,
        "equilibria": 2,
        "pool": True,
        "norm": False,
    }
    expected = TrialConfig(
        sweep="all.fields",
        profile="mine",
        dataset="mnist",
        eps="2/255",
        seed=6,
        model="deqlate",
        method="crown-ibp",
        options=options,
        method_options={"final_beta": 0.25},
        width=0.125,
        train_images=77,
        validation_images=8,
        train=train,
        evaluation=evaluation,
    )
    for settings in (train, evaluation):
        for field in dataclasses.fields(settings):
            assert getattr(settings, field.name) != field.default, f"{field.name} is not put to the test"
    content = {
        "name": "all.fields",
        "dataset": "mnist",
        "eps": "2/255",
        "seeds": [6],
        "train": {**dataclasses.asdict(train), "decay_epochs": [2, 5]},
        "evaluation": {**dataclasses.asdict(evaluation), "methods": ["ibp", "crown"]},
        "trials": [
            {
                "model": "deqlate",
                "method": "crown-ibp",
                "options": options,
                "method_options": {"loss_fusion": True, "final_beta": 0.25},
                "width": 0.125,
            }
        ],
        "resources": {"cpu": 3, "gpu": 0.25},
        "width": 0.75,
        "train_images": 77,
        "validation_images": 8,
        "profiles": {"mine": {}},
    }
    sweep = load_sweep(write(tmp_path, content), "mine", True)
    assert sweep.trials == [expected]
    assert (sweep.name, sweep.profile, sweep.dataset, sweep.eps) == ("all.fields", "mine", "mnist", "2/255")
    assert (sweep.resources.cpu, sweep.resources.gpu) == (3, 0.25)


def test_whole_numbers_name_the_trials_that_fractions_do(tmp_path):
    keys = []
    for number in (1, 1.0):
        entry = {"model": "cnn5", "method": "mtl-ibp", "method_options": {"alpha": number, "attack_radius": 2 * number}}
        keys.append([trial_key(trial, "data") for trial in trials_of(tmp_path, changed(("trials", [entry])))])
    assert keys[0] == keys[1]


def test_a_file_with_nothing_but_what_it_must_have(tmp_path):
    content = {key: value for key, value in BASE.items() if key != "train"}
    (config, *_) = trials_of(tmp_path, content)
    assert config.train == TrainSettings()
    assert config.evaluation == EvaluationSettings()
    assert (config.width, config.train_images, config.validation_images, config.options) == (1.0, None, 0, {})


def test_a_trial_s_width_goes_before_the_sweep_s(tmp_path):
    content = changed(("width", 0.5), ("trials.1.width", 0.25))
    assert [trial.width for trial in trials_of(tmp_path, content)] == [0.5, 0.5, 0.25, 0.25]


def test_a_trial_s_recipe_goes_before_the_sweep_s(tmp_path):
    extra = {"model": "cnn5", "method": "ibp", "train": {"clip_norm": None, "regularisation": 0, "decay_epochs": []}}
    content = changed(("trials", [BASE["trials"][0], extra]), ("seeds", [0]))
    plain, other = trials_of(tmp_path, content)
    assert other.train == dataclasses.replace(plain.train, clip_norm=None, regularisation=0.0, decay_epochs=())
    assert trial_key(plain, "data") == trial_key(trials_of(tmp_path, BASE)[0], "data")
    assert trial_key(other, "data") != trial_key(plain, "data")
    assert from_dict(to_dict(other)) == other


def test_a_trial_s_recipe_goes_before_a_profile_s(tmp_path):
    """What the entry leaves is the profile's, and what does not fit together is told with the profile's name."""
    profiles = {"short": {"train": {"epochs": 2, "ramp_epochs": 1, "decay_epochs": [1]}}}
    path = write(tmp_path, changed(("trials.0.train", {"epochs": 9}), ("profiles", profiles)))
    found = {trial.model: trial.train for trial in load_sweep(path, "short", True).trials}
    assert found["cnn5"] == dataclasses.replace(found["cerdeq"], epochs=9)
    assert found["cerdeq"].epochs == 2
    path = write(tmp_path, changed(("trials.0.train", {"decay_epochs": [3]}), ("profiles", profiles)))
    with pytest.raises(ConfigError, match=r"trials\.0\.train\.decay_epochs: found \[3\].*epochs = 2.*short"):
        load_sweep(path, None, True)


def test_a_profile_s_trials_have_recipes_of_their_own(tmp_path):
    entry = {"model": "cnn5", "method": "ibp", "train": {"epochs": 1, "ramp_epochs": 0, "decay_epochs": []}}
    path = write(tmp_path, changed(("trials.0.train", {"epochs": 9}), ("profiles", {"one": {"trials": [entry]}})))
    assert {trial.train.epochs for trial in load_sweep(path, "one", True).trials} == {1}
    assert {trial.train.epochs for trial in load_sweep(path, "full", True).trials} == {9, 4}


def test_the_same_network_in_two_widths_and_two_options(tmp_path):
    trials = [
        {"model": "cerdeq", "method": "ibp", **extra}
        for extra in ({}, {"width": 0.5}, {"options": {"margin": 0.2}}, {"options": {"gain": None}})
    ]
    content = changed(("trials", trials), ("seeds", [0]))
    assert len({trial_key(trial, "data") for trial in trials_of(tmp_path, content)}) == 4


def test_profiles_merge_key_by_key(tmp_path):
    profile = {
        "seeds": [7],
        "width": 0.5,
        "train": {"epochs": 3, "ramp_epochs": 1},
        "evaluation": {"attack_steps": 5},
        "resources": {"gpu": 0},
    }
    content = changed(
        ("evaluation", {"test_images": 50}), ("resources", {"cpu": 2, "gpu": 0.5}), ("profiles", {"small": profile})
    )
    path = write(tmp_path, content)
    sweep, full = load_sweep(path, "small", True), load_sweep(path, "full", True)
    config = sweep.trials[0]
    assert config.train == dataclasses.replace(full.trials[0].train, epochs=3, ramp_epochs=1)
    assert config.train.decay_epochs == (3,)
    assert config.evaluation == EvaluationSettings(test_images=50, attack_steps=5)
    assert (sweep.resources.cpu, sweep.resources.gpu) == (2, 0)
    assert ({trial.seed for trial in sweep.trials}, config.width, config.profile) == ({7}, 0.5, "small")
    assert (full.profile, full.trials[0].profile, full.trials[0].width) == ("full", "full", 1.0)
    assert [trial.seed for trial in full.trials] == [0, 1, 0, 1]


def test_a_profile_replaces_lists_whole(tmp_path):
    trials = [{"model": "cnn6", "method": "ibp"}]
    content = changed(("profiles", {"one": {"trials": trials, "train": {"decay_epochs": []}}}))
    configs = trials_of(tmp_path, content, "one")
    assert {config.model for config in configs} == {"cnn6"}
    assert configs[0].train.decay_epochs == ()


def test_a_profile_may_clear_a_number(tmp_path):
    content = changed(("train_images", 100), ("profiles", {"all": {"train_images": None}}))
    assert trials_of(tmp_path, content, "all")[0].train_images is None


@pytest.mark.parametrize(
    ("profiles", "asked", "has_gpu", "expected"),
    [
        ({"cpu": {}}, None, False, "cpu"),
        ({"cpu": {}}, None, True, "full"),
        ({"cpu": {}}, "full", False, "full"),
        ({"cpu": {}}, "cpu", True, "cpu"),
        ({"small": {}}, None, False, "full"),
        ({"small": {}, "cpu": {}}, "small", False, "small"),
        ({}, None, False, "full"),
        (None, None, False, "full"),
    ],
)
def test_which_profile_is_picked(tmp_path, profiles, asked, has_gpu, expected):
    path = write(tmp_path, changed(("profiles", profiles)))
    sweep = load_sweep(path, asked, has_gpu)
    assert sweep.profile == expected
    assert {trial.profile for trial in sweep.trials} == {expected}


def test_aliases_and_merge_keys_of_yaml(tmp_path):
    """`<<` is how people share settings in YAML: taken, or refused by its name."""
    content = changed(("trials", [{"model": "cerdeq", "method": "ibp"}]), ("seeds", [0]))
    text = yaml.safe_dump(content) + "profiles:\n  a: &a {width: 0.5}\n  b: {<<: *a, seeds: [3]}\n"
    (config,) = load_sweep(write(tmp_path, text), "b", True).trials
    assert (config.width, config.seed) == (0.5, 3)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_the_project_s_own_sweeps_load_under_each_profile(path):
    content = yaml.safe_load(path.read_text())
    for profile in ["full", *content.get("profiles", {})]:
        sweep = load_sweep(path, profile, True)
        assert sweep.profile == profile
        assert sweep.name == path.stem
        assert len(sweep.trials) == len({trial_key(trial, "data") for trial in sweep.trials}) > 1
        assert Fraction(str(content["eps"])) == parse_eps(sweep.eps)
    assert load_sweep(path, None, False).profile == ("cpu" if "cpu" in content.get("profiles", {}) else "full")
    assert load_sweep(path, None, True).profile == "full"


def test_there_are_sweeps():
    assert {path.name for path in SWEEPS} >= {"quickstart.yaml", "cifar10.yaml"}


def test_a_network_without_the_rules_it_will_need(refused, tmp_path, monkeypatch):
    """Found before training, not after it, when the last verifier stage would have asked."""
    record = dataclasses.replace(operators.of_function(F.relu), backward=None)
    monkeypatch.setattr(operators, "_by_module", {**operators._by_module, nn.ReLU: record})
    message = refused(write(tmp_path, BASE))
    for part in ("trials.0", "relu", "ibp alone"):
        assert part in message
    assert load_sweep(write(tmp_path, changed(("evaluation.methods", ["ibp"]))), None, False).trials


def test_options_of_methods_are_part_of_a_trial(tmp_path):
    entry = {"model": "cnn5", "method": "crown-ibp"}
    chosen = [{}, {"loss_fusion": False}, {"final_beta": 0.5}]
    content = changed(("trials", [{**entry, "method_options": options} for options in chosen]), ("seeds", [0]))
    trials = load_sweep(write(tmp_path, content), None, False).trials
    assert [trial.method_options for trial in trials] == chosen
    assert len({trial_key(trial, "data") for trial in trials}) == 3
    assert trials[1].label == "cnn5 crown-ibp loss_fusion=False seed 0"
    assert all(from_dict(to_dict(trial)) == trial for trial in trials)
    spelled_out = changed(("trials", [{**entry, "method_options": {"loss_fusion": True, "final_beta": 0.0}}]))
    assert load_sweep(write(tmp_path, spelled_out), None, False).trials[0] == trials[0]
