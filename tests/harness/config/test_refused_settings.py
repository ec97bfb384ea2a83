"""What is wrong in a sweep file is told in one message: the key, what was found, what is allowed."""

import dataclasses

import pytest
import torch.nn.functional as F
from small_sweep import BASE, changed, write
from torch import nn

from baselines import DATASETS
from cerdeq.bounds import operators
from harness.config.sweep_file import load_sweep

# What each bad file's message must hold, besides the file's name: the key, what was found, what is allowed.
UNKNOWN_KEYS = {
    "top level": (("epochs", 3), ["epochs: unknown key", "train", "profiles"]),
    "train": (("train.learning_rates", 0.1), ["train.learning_rates: unknown key", "learning_rate", "epochs"]),
    "evaluation": (("evaluation.attacks", 1), ["evaluation.attacks: unknown key", "attack_steps"]),
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
    "a list for options": (("trials.1.options", [1]), ["trials.1.options: found 1"]),
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
        ("evaluation.stages", ["crown-ibp", "ibp"]),
        ["evaluation.stages", "['crown-ibp', 'ibp']", "in order"],
    ),
    "unknown bounds": (("evaluation.stages", ["ibp", "lp"]), ["evaluation.stages", "'lp'", "alpha-crown"]),
    "bab without a budget": (
        ("evaluation", {"stages": ["ibp", "bab"], "bab_seconds": None}),
        ["evaluation.bab_seconds", "None", "a number, where bab_branches is null"],
    ),
    "bab without time": (("evaluation.bab_seconds", 0), ["evaluation.bab_seconds", "above 0"]),
    "bab without branches": (("evaluation.bab_branches", 0), ["evaluation.bab_branches", "at least 1"]),
    "bounds without ibp": (("evaluation.stages", ["crown"]), ["evaluation.stages", "ibp"]),
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
    "an unknown way to compile": (("train.compile", "yes"), ["train.compile: found 'yes'", "auto", "always", "never"]),
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
    "an attack of no kind": (
        ("evaluation.attack", "margins"),
        ["evaluation.attack: found 'margins'", "'margin' or 'all'"],
    ),
    "a step longer than the ball is wide": (
        ("evaluation.attack_step", 2.5),
        ["evaluation.attack_step: found 2.5", "at most 2"],
    ),
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
    "a network in a list": (("trials.0.model", ["cnn7", "cnn77"]), ["trials.0.model: found 'cnn77'", "cnn7"]),
    "method": (("trials.0.method", "ibpp"), ["trials.0.method: found 'ibpp'", "'ibp'?"]),
    "data set": (("dataset", "cifar-10"), ["dataset: found 'cifar-10'", "'cifar10'?", *DATASETS]),
}
MISSING = {key: (None, [f"{key}: missing"]) for key in ("name", "dataset", "eps", "seeds", "trials")}
SWEEP_NAMES = {"too long for a file": (("name", "a" * 300), ["name: found 'aaa"])} | {
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
        "name": SWEEP_NAMES,
    }.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_setting_is_told_by_key_and_nothing_is_written(refused, tmp_path, case):
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


def test_a_network_without_the_rules_it_will_need_is_refused(refused, tmp_path, monkeypatch):
    """Found before training, not after it, when the last verifier stage would have asked."""
    record = dataclasses.replace(operators.of_function(F.relu), backward=None)
    monkeypatch.setattr(operators, "_by_module", {**operators._by_module, nn.ReLU: record})
    message = refused(write(tmp_path, BASE))
    for part in ("trials.0", "relu", "ibp alone"):
        assert part in message
    assert load_sweep(write(tmp_path, changed(("evaluation.stages", ["ibp"]))), None, False).trials
