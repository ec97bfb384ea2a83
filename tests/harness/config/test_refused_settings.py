"""Wrong values in a sweep file: the message has the file, the key, what was found and what is allowed."""

import dataclasses

import pytest
import torch.nn.functional as F
from small_sweep import BASE, changed, write
from torch import nn

from cerdeq.bounds import operators
from harness.config.sweep_file import ConfigError, load_sweep

RENAMED_DEPTH = "write `model: cnn, options: {depth: 15}`"
BAD = {  # key, value, what the message contains; a rule each
    "an unknown key": ("epochs", 3, ["epochs: unknown key", "train", "profiles"]),
    "an unknown key of a section": ("train.epoch", 3, ["train.epoch: unknown key", "learning_rate"]),
    "an unknown key of a trial": ("trials.1.modle", "cnn5", ["trials.1.modle: unknown key", "model", "width"]),
    "an unknown key of a trial's recipe": ("trials.1.train", {"epoch": 3}, ["trials.1.train.epoch: unknown key"]),
    "a renamed key": ("evaluation.methods", ["ibp"], ["evaluation.methods: renamed; write evaluation.stages"]),
    "a renamed network": ("trials.0.model", "cnn15", ["trials.0.model: found 'cnn15', allowed: ", RENAMED_DEPTH]),
    "an unknown network": ("trials.1.model", "cerdeqq", ["trials.1.model: found 'cerdeqq'", "did you mean 'cerdeq'?"]),
    "a number for a network": ("trials.0.model", 7, ["trials.0.model: found 7", "cnn7"]),
    "an unknown method": ("trials.0.method", "ibpp", ["trials.0.method: found 'ibpp', allowed: ", "'ibp'?"]),
    "an unknown data set": ("dataset", "cifar-10", ["dataset: found 'cifar-10', allowed: ", "'cifar10'?"]),
    "an option of another network": ("trials.1.options", {"depth": 7}, ["trials.1.options.depth", "cerdeq", "margin"]),
    "a missing option": ("trials.0.model", "cnn", ["trials.0.options.depth: missing"]),
    "a depth that is too small": (
        "trials.0", {"model": "resnet", "method": "ibp", "options": {"depth": 8}},
        ["trials.0.options: depth must be odd and at least 7, found 8"],
    ),
    "an option of another type": ("trials.1.options", {"margin": "x"}, ["options.margin: found 'x'", "number"]),
    "an option's bool": ("trials.1.options", {"margin": True}, ["trials.1.options.margin: found True", "number"]),
    "an option's fraction": ("trials.1.options", {"iterations": 1.5}, ["trials.1.options.iterations: found 1.5"]),
    "an option out of range": ("trials.1.options", {"margin": 2}, ["trials.1.options: margin", "(0, 1)", "2"]),
    "an infinite option": ("trials.1.options", {"margin": float("inf")}, ["trials.1.options.margin"]),
    "options that do not fit": (
        "trials.1.options", {"recurrent": False, "margin": 0.2}, ["trials.1.options: recurrent", "margin"],
    ),
    "an option of another method": (
        "trials.0.method_options", {"loss_fusion": True}, ["trials.0.method_options.loss_fusion", "ibp", "none"],
    ),
    "a method's option out of range": (
        "trials.0", {"model": "cnn5", "method": "crown-ibp", "method_options": {"final_beta": 1.5}},
        ["trials.0.method_options: final_beta: found 1.5, allowed: from 0 to 1"],
    ),
    "a list for a mapping": ("train", [1], ["train: found [1], allowed: a mapping"]),
    "nothing for a mapping": ("trials.0.train", None, ["trials.0.train: found None, allowed: a mapping"]),
    "a mapping for a list": ("trials", {"model": "cnn5"}, ["trials: found {'model': 'cnn5'}, allowed: a valid list"]),
    "a text for a trial": ("trials.0", "cnn5", ["trials.0: found 'cnn5', allowed: a mapping"]),
    "no trials": ("trials", [], ["trials: found []", "at least 1"]),
    "a text for an integer": ("train.epochs", "3", ["train.epochs: found '3', allowed: a valid integer"]),
    "a bool for an integer": ("train.epochs", True, ["train.epochs: found True", "integer"]),
    "a text in a list": ("train.decay_epochs", ["3"], ["train.decay_epochs.0: found '3'", "integer"]),
    "a text for a number": ("trials.0.train", {"clip_norm": "x"}, ["trials.0.train.clip_norm: found 'x'", "number"]),
    "no number": ("train.regularisation", float("nan"), ["train.regularisation: found nan, allowed: a finite number"]),
    "a mapping for profiles": ("profiles", [1], ["profiles: found [1], allowed: a mapping"]),
    "nothing for a profile": ("profiles", {"cpu": None}, ["profiles.cpu: found None, allowed: a mapping"]),
    "no radius": ("eps", "256/255", ["eps: found '256/255', allowed: a radius in pixel units"]),
    "a radius of another type": ("eps", [8, 255], ["eps: found [8, 255]", "fraction"]),
    "no seeds": ("seeds", [], ["seeds: found []", "at least 1"]),
    "a negative seed": ("seeds", [-1], ["seeds.0: found -1, allowed: greater than or equal to 0"]),
    "a seed too large for torch": ("seeds", [2**31], ["seeds.0: found 2147483648"]),
    "a seed twice": ("seeds", [0, 1, 0], ["seeds: 0 appears twice"]),
    "no width": ("width", 0, ["width: found 0, allowed: greater than 0"]),
    "a width that no memory holds": ("trials.0.width", 1e9, ["trials.0.width: found 1000000000.0"]),
    "no training images": ("train_images", 0, ["train_images: found 0, allowed: greater than or equal to 1"]),
    "negative validation images": ("validation_images", -1, ["validation_images: found -1"]),
    "half a core": ("resources.cpu", 1.5, ["resources.cpu: found 1.5", "integer"]),
    "one and a half GPUs, which Ray refuses": ("resources.gpu", 1.5, ["resources.gpu: found 1.5", "a whole number"]),
    "a name too long for a file": ("name", "a" * 300, ["name: found 'aaa"]),
    **{f"the name {name!r}": ("name", name, [f"name: found {name!r}"]) for name in ("../x", "a/b", "..", "x y", "")},
    **{f"no {key}": (key, None, [f"{key}: missing"]) for key in ("name", "dataset", "eps", "seeds", "trials")},
}  # fmt: skip
SETTINGS = {  # of train and evaluation; what else is allowed
    "train.epochs": [(0, "at least 1")],
    "train.batch_size": [(1, "at least 2")],
    "train.learning_rate": [(0.0, "above 0"), (1.0, "below 1")],
    "train.decay_epochs": [([2, 5], "epochs = 4"), ([0], "between 1"), ([3, 2], "increasing"), ([3, 3], "increasing")],
    "train.decay_factor": [(0.0, "above 0")],
    "train.ramp_start": [(0, "at least 1")],
    "train.ramp_epochs": [(-1, "at least 0"), (5, "5 exceeds epochs = 4")],
    "train.eps": [("abc", "fraction")],
    "train.kappa": [(1.5, "from 0 to 1")],
    "train.l1": [(-1.0, "at least 0")],
    "train.accumulate": [(3, "a divisor of batch_size = 64"), (64, "parts of 2 or more")],
    "train.clip_norm": [(0.0, "above 0")],
    "train.regularisation": [(-1.0, "at least 0")],
    "train.ema_decay": [(1.0, "below 1")],
    "train.precision": [("fp8", "'tf32', 'float32' or 'bf16'")],
    "train.compile": [("yes", "'auto', 'always' or 'never'")],
    "train.initialisation": [("kaiming", "'ibp' or 'default'")],
    "evaluation.stages": [(["crown-ibp", "ibp"], "in order"), (["ibp", "lp"], "alpha-crown"), (["crown"], "ibp")],
    "evaluation.test_images": [(0, "at least 1")],
    "evaluation.batch_size": [(0, "at least 1")],
    "evaluation.attack": [("margins", "'margin' or 'all'")],
    "evaluation.attack_steps": [(0, "at least 1")],
    "evaluation.attack_step": [(2.5, "at most 2")],
    "evaluation.attack_restarts": [(0, "at least 1")],
    "evaluation.bab_seconds": [(0.0, "above 0")],
    "evaluation.bab_branches": [(0, "at least 1")],
}


def message_of(path):
    with pytest.raises(ConfigError) as error:
        load_sweep(path, "full", True)
    return str(error.value)


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_value_is_refused_by_file_key_found_and_allowed(tmp_path, case):
    key, value, expected = BAD[case]
    content = changed(remove=[key]) if expected == [f"{key}: missing"] else changed((key, value))
    message = message_of(write(tmp_path, content))
    for part in (f"{tmp_path}/study.yaml: ", *expected):
        assert part in message, message


@pytest.mark.parametrize("key", SETTINGS)
def test_a_setting_out_of_range_is_refused(tmp_path, key):
    for value, allowed in SETTINGS[key]:
        message = message_of(write(tmp_path, changed((key, value))))
        for part in (f"{key}: found {value!r}, allowed: ", allowed):
            assert part in message, message


def test_branch_and_bound_needs_a_limit(tmp_path):
    content = changed(("evaluation", {"stages": ["ibp", "bab"], "bab_seconds": None}))
    assert "evaluation.bab_seconds: found None, allowed: a number, where" in message_of(write(tmp_path, content))


def test_a_trial_s_recipe_has_to_fit_the_sweep_s(tmp_path):
    message = message_of(write(tmp_path, changed(("trials.0.train", {"epochs": 2}))))
    assert "trials.0.train.decay_epochs: found [3], allowed: increasing epochs between 1 and epochs = 2" in message


def test_the_command_reports_all_problems_and_writes_nothing(refused, tmp_path):
    content = changed(("train.epochs", "3"), ("epochs", 1), ("trials.0.model", "cnn6x"), ("eps", "8/0"))
    message = refused(write(tmp_path, content))
    for key in ("train.epochs", "epochs: unknown", "trials.0.model", "eps"):
        assert f"study.yaml: {key}" in message
    assert message.count("study.yaml") == 4
    assert not (tmp_path / "results").exists()


def test_a_network_without_the_rules_it_will_need_is_refused(tmp_path, monkeypatch):
    """Before training, not after it, when the last verifier stage would need the rule."""
    record = dataclasses.replace(operators.of_function(F.relu), backward=None)
    monkeypatch.setattr(operators, "_by_module", {**operators._by_module, nn.ReLU: record})
    message = message_of(write(tmp_path, BASE))
    for part in ("trials.0", "relu", "ibp alone"):
        assert part in message
    assert load_sweep(write(tmp_path, changed(("evaluation.stages", ["ibp"]))), None, False).trials
