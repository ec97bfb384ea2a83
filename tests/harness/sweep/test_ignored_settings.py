"""Settings that change nothing are refused: in an entry, and in the file where no trial uses them."""

from dataclasses import fields

import pytest
from small_sweep import BASE, changed, entry, refusal, trials_of

from harness.methods import METHODS, make_method
from harness.settings import TrainSettings

NO_RAMP = {"epochs": 4, "batch_size": 64, "ramp_epochs": 0, "decay_epochs": []}
IN_AN_ENTRY = [
    (entry("pgd", train={"regularisation": 0.1}), "train.regularisation: found 0.1", "'pgd': it"),
    (entry("plain", train={"eps": 0.1}), "train.eps: found 0.1", "no radius"),
    (entry("plain", train={"ramp_epochs": 1}), "train.ramp_epochs: found 1", "no radius"),
    (
        entry("sabr", method_options={"subselection": 1.0, "attack_steps": 3}),
        "method_options.attack_steps: found 3", "with subselection 1 the box is the whole ball",
    ),
    (entry(train={"regularise_equilibria": False}), "train.regularise_equilibria: found False", "no equilibrium"),
    (entry(train={"decay_epochs": [], "decay_factor": 0.5}), "train.decay_factor: found 0.5", "decay_epochs"),
    (
        entry(train={"ramp_epochs": 0, "ramp_start": 1, "regularisation": 0.1}),
        "train.regularisation: found 0.1", "no ramp",
    ),
    (
        entry(model="cerdeq", train={"regularisation": 0, "regularise_equilibria": False}),
        "train.regularise_equilibria: found False", "regularisation is 0",
    ),
    (
        entry(model="cerdeq", options={"early_iterations": 4}, train={"ramp_epochs": 0, "ramp_start": 1}),
        "options.early_iterations: found 4", "no ramp",
    ),
    (
        entry(model="cerdeq", options={"gradient": "unrolled", "backward_iterations": 4}),
        "options.backward_iterations: found 4", "the iterations themselves",
    ),
    (
        entry("plain", "cerdeq", options={"warm_start": True}),
        "options.warm_start: found True", "this method computes no bounds",
    ),
    (entry(["ibp", "pgd"], train={"regularisation": 0.1}), "train.regularisation", "with method pgd"),
]  # fmt: skip
IN_THE_FILE = [
    (
        [("validation_images", 50), ("evaluation.test_images", 50)],
        "evaluation.test_images: found 50", "validation",
    ),
    ([("evaluation.bab_seconds", 5)], "evaluation.bab_seconds: found 5", "stages has none of bab"),
    (
        [("evaluation", {"stages": ["ibp", "crown-ibp"], "certificates": True})],
        "evaluation.certificates: found True", "none of crown, alpha-crown, bab",
    ),
    ([("width", 0.5), ("trials", [entry(width=0.25)])], "width: found 0.5", "each of trials has its own"),
    (
        [("train", {**NO_RAMP, "kappa": 0.5}), ("trials", [entry("plain", model=["cnn5", "cnn7"])])],
        "train.kappa: found 0.5", "no other trial uses it",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "problem", "reason"), IN_AN_ENTRY)
def test_an_entry_s_setting_that_its_trial_ignores_is_refused_with_the_reason(tmp_path, wrong, problem, reason):
    message = refusal(tmp_path, changed(("trials", [*BASE["trials"], wrong])))
    assert f"study.yaml: trials.2.{problem}" in message and reason in message, message


@pytest.mark.parametrize(("changes", "problem", "reason"), IN_THE_FILE)
def test_a_file_s_setting_that_no_trial_uses_is_refused(tmp_path, changes, problem, reason):
    message = refusal(tmp_path, changed(*changes))
    assert f"study.yaml: {problem}" in message and reason in message, message


def test_set_is_refused_alike(tmp_path):
    content = changed(("train", NO_RAMP), ("trials", [entry("plain")]))
    assert "--set: train.kappa: found 0.5" in refusal(tmp_path, content, "full", ["train.kappa=0.5"])


def test_a_profile_takes_back_with_null_what_it_does_not_use(tmp_path):
    full = {"stages": ["ibp", "bab"], "bab_seconds": 5, "certificates": True, "test_images": 50}
    less = {"stages": ["ibp"], "bab_seconds": None, "certificates": False, "test_images": None}
    content = changed(("evaluation", full), ("profiles", {"cpu": {"evaluation": less, "validation_images": 50}}))
    trial = trials_of(tmp_path, content, "cpu")[0]
    assert (trial.evaluation.stages, trial.validation_images) == (("ibp",), 50)


ACCEPTED = {
    "what some trials use": [("train.regularisation", 0.1), ("trials", [*BASE["trials"], entry("plain")])],
    "backward iterations of bounds": [
        ("trials", [entry("crown-ibp", "cerdeq", options={"gradient": "unrolled", "backward_iterations": 4})])
    ],
    "no ramp in an entry, where the sweep's is longer": [
        ("trials", [entry(), entry("plain", train={"epochs": 1, "ramp_epochs": 0, "decay_epochs": []})])
    ],
    "a ramp that the network follows": [
        ("trials", [entry("plain", "cerdeq", options={"early_iterations": 4}, train={"ramp_epochs": 1})])
    ],
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_changes_something_is_accepted(tmp_path, case):
    assert trials_of(tmp_path, changed(*ACCEPTED[case]))


@pytest.mark.parametrize("method", METHODS)
def test_reasons_are_for_settings_that_exist(method):
    for options in ({}, {"subselection": 1.0}, {"alpha": 1.0}):
        if options.keys() <= {field.name for field in fields(METHODS[method])}:
            instance = make_method(method, options)
            assert instance.ignored().keys() <= {f.name for kind in (TrainSettings, instance) for f in fields(kind)}
