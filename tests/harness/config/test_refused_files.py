"""Wrong sweep files: the message has the file, the key, what was found and what is allowed; nothing starts.

Each case is a key, its wrong value, and parts of the message. Pydantic checks types and ranges: one case of each kind.
"""

import dataclasses

import pytest
import torch.nn.functional as F
from small_sweep import BASE, changed, entry, refusal, trainings_of, write
from torch import nn

from cerdeq.operators import table

NAMES = [
    ("epochs", 3, "epochs: unknown key; allowed: name, ", "ran; did you mean `train.epochs`?"),
    ("train.stages", ["ibp"], "train.stages: unknown key; allowed: epochs, ", "did you mean `evaluation.stages`?"),
    ("train.epoch", 3, "train.epoch: unknown key; allowed: epochs, ", "did you mean 'epochs'?"),
    ("trials.1.modle", "cnn5", "trials.1.modle: unknown key; allowed: model, ", "did you mean 'model'?"),
    ("evaluation", [{"stages": ["ibp", "crwn"]}], "evaluation.0.stages: found ['ibp', 'crwn'], allowed: ", "'crown'?"),
    ("trials.0.model", "cnn15", "trials.0.model: found 'cnn15'", "write `model: cnn, options: {depth: 15}`"),
    ("trials.1.model", "cerdeqq", "trials.1.model: found 'cerdeqq', allowed: ", "did you mean 'cerdeq'?"),
    ("trials.0", {"model": "cnn5"}, "trials.0.method: missing; allowed: plain, pgd, ibp, ", "or `checkpoint` instead"),
    ("trials.0.method", "ibpp", "trials.0.method: found 'ibpp', allowed: ", "'ibp'?"),
    ("dataset", "cifar-10", "dataset: found 'cifar-10', allowed: ", "'cifar10'?"),
    (
        "trials.0.options",
        {"depth": 9},
        "options.depth: unknown option of cnn5; cnn5 has no options",
        "`model: cnn` has depth",
    ),
    ("trials.1.options", {"margn": 9}, "trials.1.options.margn: unknown option of cerdeq; allowed: ", "'margin'?"),
    ("trials.0.method_options", {"alpha": 1}, "method_options.alpha: unknown option of ibp; ibp has no options"),
    ("trials.0.model", "cnn", "trials.0.options.depth: missing"),
    ("evaluation.stages", ["ibp", "lp"], "in this order: ibp, crown-ibp, crown, alpha-crown"),
    ("name", "../x", "name: found '../x'"),
]
TYPES = [  # where there is an example of a right value, it is shown
    ("seeds", "0,1", "seeds: found '0,1': Input should be a valid list, such as [0, 1]"),
    ("trials.0", "cnn5", "trials.0: found 'cnn5': Input should be a valid dictionary"),
    ("trials", [], "trials: found []", "at least 1"),
    ("train.epochs", "3", "train.epochs: found '3': Input should be a valid integer, such as 160"),
    ("train.epochs", [5, 6], "train.epochs: found [5, 6]: Input", "lists of values belong into entries of `trials`"),
    ("train.regularisation", float("nan"), "train.regularisation: found nan: Input should be a finite number"),
    ("trials.1.options", {"norm": "no"}, "options.norm: found 'no': Input should be a valid boolean, such as true"),
    ("evaluation", [{}, None], "evaluation.1: found None: Input should be a valid dictionary"),
    ("evaluation", [{}, {"attack_steps": "5"}], "evaluation.1.attack_steps: found '5': Input should be a valid int"),
    ("eps", [8, 255], "eps: found [8, 255]", "fraction"),
    ("eps", 8, "eps: found '8'", "did you mean 8/255?"),
]
VALUES = [
    ("train.epochs", 0, "train.epochs: found 0: Input should be greater than or equal to 1"),
    ("train.precision", "fp8", "train.precision: found 'fp8': Input should be 'tf32', 'float32' or 'bf16'"),
    ("seeds", [0, 1, 0], "seeds: found [0, 1, 0], allowed: each one once"),
    ("eps", "256/255", "a radius in pixel units"),
    ("evaluation", [{}, {"eps": ["1/8", "x"]}], "evaluation.1.eps.1: found 'x', allowed: a number or a fraction"),
    ("evaluation.eps", ["2/32", 0.0625], "evaluation: found ['eps 1/16, ibp > ", "allowed: each evaluation once"),
    ("train.decay_epochs", [2, 5], "train.decay_epochs: found [2, 5], allowed: increasing epochs from 1 to epochs = 4"),
    ("train.ramp_epochs", 5, "train.ramp_epochs: found 5", "a ramp that ends by epoch 4; this one ends in 5"),
    ("train.std", [1e-46], "train.std: found [1e-46], allowed: numbers from 1e-06 to 1e6"),
    ("train.accumulate", 3, "a divisor of batch_size = 64"),
    ("train.accumulate", 64, "parts of 2 or more"),
    ("resources.gpu", 1.5, "a fraction of one GPU, or a whole number of them"),
    ("evaluation", [{"stages": ["ibp", "bab"], "bab_seconds": None}], "evaluation.0.bab_branches: found None"),
    (
        "evaluation",
        {"stages": ["ibp", "crown"], "certificates": True, "bab_seconds": None},
        "evaluation.bab_branches: found None, allowed: a number",
    ),
    ("trials.0.train", {"mean": [0.1, 0.2]}, "trials.0.train.mean: found [0.1, 0.2]", "a number for each channel"),
    ("trials.1.options", {"margin": 2}, "trials.1.options: margin", "(0, 1)", "2"),
    ("trials.1.options", {"recurrent": False, "margin": 0.2}, "trials.1.options: recurrent", "margin"),
    ("trials.0", entry(model="resnet", options={"depth": 8}), "trials.0.options: depth must be odd, from 7 to 1,000"),
    *[
        ("trials.0", entry(model=model, options=options), f"trials.0.options: {message}", "1,000, found")
        for model, options, message in (
            ("cnn", {"depth": 10**8}, "depth must be from 5 to"),
            ("convdeq", {"layers": 10**8}, "layers must be from 1 to"),
            ("fc", {"hidden": [1] * 1001}, "hidden must be numbers of at least 1, from 1 to"),
        )
    ],
    *[
        ("trials.0", entry(width=width, **changes), "trials.0.options: found a network of", "500,000,000; lower")
        for width, changes in (
            (99, {"model": "cerdeq"}),
            (1, {"model": "fc", "options": {"hidden": [10**12]}}),
            (1, {"model": "cerdeq", "options": {"kernel_size": 10_001}}),
        )
    ],
    (
        "trials.0", entry("crown-ibp", method_options={"final_beta": 1.5}),
        "trials.0.method_options: final_beta: found 1.5, allowed: from 0 to 1",
    ),
]  # fmt: skip


def cerdeq(**keys):
    return [entry(model="cerdeq", **keys)]


GRIDS = [
    ("trials", cerdeq(options={"margin": []}), "trials.0.options.margin: found []", "at least one"),
    ("trials", cerdeq(options={"margin": [[0.1], 0.2]}), "trials.0.options.margin: found [[0.1], 0.2]",
     "without lists in it"),
    (
        "trials", cerdeq(options={"margin": [0.1, 2.0], "gain": [0.5, None]}),
        "trials.0.options: margin", "(0, 1)", "with options.margin 2.0, options.gain 0.5",
    ),
    ("trials", [entry(model=["cnn5", "cnn77"])], "trials.0.model: found 'cnn77'", "with model cnn77"),
    ("trials", cerdeq(options={"margin": [0.1, 0.1]}), "an entry that differs from trials.0 (with options.margin 0.1)"),
    ("trials", cerdeq(zip=["model", "method"]), "trials.0.zip: found ['model', 'method']", "it has none"),
    ("trials", cerdeq(width=[1, 2], zip=["width"]), "trials.0.zip: found ['width']", "two or more"),
    (
        "trials", [entry(width=[1, 2], model=["cnn5", "cnn7", "cnn11"], zip=["width", "model"])],
        "trials.0.zip: found ['width', 'model']", "same length", "width has 2", "model has 3",
    ),
    (
        "trials", cerdeq(options={name: list(range(30)) for name in ("iterations", "margin", "gain")}),
        "trials.0.options.iterations, options.margin, options.gain: found '27,000 trials'", "at most 10,000",
    ),
]  # fmt: skip
CASES = [*NAMES, *TYPES, *VALUES, *GRIDS]


@pytest.mark.parametrize(("key", "value", "parts"), [(key, value, parts) for key, value, *parts in CASES])
def test_a_wrong_value_is_refused_by_file_key_found_and_allowed(tmp_path, key, value, parts):
    message = refusal(tmp_path, changed((key, value)))
    for part in (f"{tmp_path}/study.yaml: ", *parts):
        assert part in message, message
    has_one_line = len(message.splitlines()) == 1
    assert has_one_line or key == "trials", "a problem has one line, not one for each trial that has it"


@pytest.mark.parametrize("key", ["name", "dataset", "eps", "seeds", "trials"])
def test_a_missing_key_is_named(tmp_path, key):
    assert f"study.yaml: {key}: missing" in refusal(tmp_path, changed(remove=[key]))
    lines = refusal(tmp_path, changed((f"{key}s", 1), remove=[key])).splitlines()
    assert "unknown key" in lines[0] and f"{key}: missing" in lines[1], "a misspelt key first"


def test_problems_of_keys_entries_and_values_are_reported_at_once(refused, tmp_path):
    entries = [entry(modle="cnn5"), entry("ibpp"), entry(train={"epoch": 3})]
    wrong = [("train.epochs", "3"), ("epochs", 1), ("eps", "8/0")]
    lines = refused(write(tmp_path, changed(*wrong, ("trials", entries)))).removeprefix("error: ").splitlines()
    keys = [line.removeprefix(f"{tmp_path}/study.yaml: ").partition(": ")[0] for line in lines]
    assert keys == ["eps", "train.epochs", "trials.0.modle", "trials.1.method", "trials.2.train.epoch", "epochs"]


def test_the_command_reports_missing_data_beside_wrong_entries_and_writes_nothing(refused, tmp_path):
    entries = [entry(options={"depth": 2}), entry("mtl-ibp", method_options={"alpah": 1}, options={"x": 1})]
    entries += [entry(model="resnet", options={"depth": 8}), entry(model="cerdeq", options={"margin": 2})]
    (tmp_path / "data").mkdir()
    path = write(tmp_path, changed(("dataset", "cifar10"), ("trials", entries)))
    message = refused(path, "--data-dir", str(tmp_path / "data"))
    for key in (
        "0.options.depth: unknown option of cnn5", "1.options.x: unknown", "1.method_options.alpah: unknown",
        "2.options: depth must be odd", "3.options: margin",
    ):  # fmt: skip
        assert f"study.yaml: trials.{key}" in message
    assert "it would have to be downloaded" in message and not any((tmp_path / "data").iterdir())
    assert not (tmp_path / "results").exists()


def test_all_problems_of_a_recipe_and_an_entry_are_reported_at_once(tmp_path):
    wrong = {"decay_epochs": [9], "ramp_epochs": 9, "learning_rate": 2, "kappa": 2}
    message = refusal(tmp_path, changed(*((f"train.{key}", value) for key, value in wrong.items())))
    keys = [line.split(": ")[1] for line in message.splitlines()]
    assert keys == [f"train.{key}" for key in ("learning_rate", "decay_epochs", "ramp_epochs", "kappa")]
    entries = [entry(model="cerdeq", train={"kappa": 2, "l1": [-1, -2]})]
    lines = refusal(tmp_path, changed(("trials", entries))).splitlines()
    keys = ("train.kappa", "train.l1", "train.l1")
    assert len(lines) == 3 and all(f"trials.0.{key}: " in line for key, line in zip(keys, lines, strict=True))


def test_a_network_without_the_rules_it_will_need_is_refused(tmp_path, monkeypatch):
    """Before training, not after it, when the last verifier stage would need the rule."""
    record = dataclasses.replace(table.of_function(F.relu), backward=None)
    monkeypatch.setattr(table, "_by_module", {**table._by_module, nn.ReLU: record})
    message = refusal(tmp_path, BASE)
    for part in ("trials.0", "relu", "ibp alone"):
        assert part in message
    assert trainings_of(tmp_path, changed(("evaluation.stages", ["ibp"])))
