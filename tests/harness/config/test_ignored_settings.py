"""Settings that change nothing are refused: in an entry, and in the file where no trial uses them."""

from dataclasses import fields

import pytest
from small_sweep import BASE, changed, trials_of, write

from harness.config.settings import TrainSettings
from harness.config.sweep_file import ConfigError, load_sweep
from harness.methods import METHODS, make_method

NO_RAMP = {"epochs": 4, "batch_size": 64, "ramp_epochs": 0, "decay_epochs": []}


def entry(method, model="cnn5", **keys):
    return {"model": model, "method": method, **keys}


IN_AN_ENTRY = {
    "regularisation of what bounds nothing": (
        entry("pgd", train={"regularisation": 0.1}), "train.regularisation: found 0.1", "'pgd': it",
    ),
    "a radius of plain training": (entry("plain", train={"eps": 0.1}), "train.eps: found 0.1", "no radius"),
    "a ramp of plain training": (entry("plain", train={"ramp_epochs": 1}), "train.ramp_epochs: found 1", "no radius"),
    "an option that the method's others disable": (
        entry("sabr", method_options={"subselection": 1.0, "attack_steps": 3}),
        "method_options.attack_steps: found 3", "with subselection 1 its box is the whole ball",
    ),
    "an equilibrium that is not there": (
        entry("ibp", train={"regularise_equilibria": False}),
        "train.regularise_equilibria: found False", "'cnn5': it has no equilibrium",
    ),
    "a factor of no decays": (
        entry("ibp", train={"decay_epochs": [], "decay_factor": 0.5}), "train.decay_factor: found 0.5", "decay_epochs",
    ),
    "regularisers without a ramp": (
        entry("ibp", train={"ramp_epochs": 0, "ramp_start": 1, "regularisation": 0.1}),
        "train.regularisation: found 0.1", "no ramp",
    ),
    "regularisers without weight": (
        entry("ibp", model="cerdeq", train={"regularisation": 0, "regularise_equilibria": False}),
        "train.regularise_equilibria: found False", "regularisation is 0",
    ),
    "early iterations without a ramp": (
        entry("ibp", model="cerdeq", options={"early_iterations": 4}, train={"ramp_epochs": 0, "ramp_start": 1}),
        "options.early_iterations: found 4", "no ramp",
    ),
    "the implicit gradient of unrolled solves": (
        entry("ibp", model="cerdeq", options={"gradient": "unrolled", "backward_iterations": 4}),
        "options.backward_iterations: found 4", "the iterations themselves",
    ),
    "a lifted solve of what bounds nothing": (
        entry("plain", "cerdeq", options={"warm_start": True}), "options.warm_start: found True", "it bounds nothing",
    ),
    "one of several": (entry(["ibp", "pgd"], train={"regularisation": 0.1}), "train.regularisation", "with method pgd"),
}  # fmt: skip
IN_THE_FILE = {
    "test images beside held-out ones": (
        [("validation_images", 50), ("evaluation.test_images", 50)], "evaluation.test_images: found 50", "validation",
    ),
    "seconds of no branch and bound": (
        [("evaluation.bab_seconds", 5)], "evaluation.bab_seconds: found 5", "stages has none of bab",
    ),
    "certificates of nothing": (
        [("evaluation", {"stages": ["ibp", "crown-ibp"], "certificates": True})],
        "evaluation.certificates: found True", "none of crown, alpha-crown, bab",
    ),
    "a width that each entry has": (
        [("width", 0.5), ("trials", [entry("ibp", width=0.25)])], "width: found 0.5", "each of trials has its own",
    ),
    "a recipe's setting": (
        [("train", {**NO_RAMP, "kappa": 0.5}), ("trials", [entry("plain", model=["cnn5", "cnn7"])])],
        "train.kappa: found 0.5", "no other trial uses it",
    ),
}  # fmt: skip


def refusal(tmp_path, content, *assignments):
    with pytest.raises(ConfigError) as error:
        load_sweep(write(tmp_path, content), "full", True, assignments)
    return str(error.value)


@pytest.mark.parametrize("case", IN_AN_ENTRY)
def test_an_entry_s_setting_that_its_trial_ignores_is_refused_with_the_reason(tmp_path, case):
    bad, *expected = IN_AN_ENTRY[case]
    message = refusal(tmp_path, changed(("trials", [*BASE["trials"], bad])))
    for part in ("study.yaml: trials.2.", *expected):
        assert part in message, message


@pytest.mark.parametrize("case", IN_THE_FILE)
def test_a_file_s_setting_that_no_trial_uses_is_refused(tmp_path, case):
    changes, *expected = IN_THE_FILE[case]
    message = refusal(tmp_path, changed(*changes))
    for part in ("study.yaml: ", *expected):
        assert part in message, message


def test_set_is_refused_alike(tmp_path):
    content = changed(("train", NO_RAMP), ("trials", [entry("plain")]))
    assert "--set: train.kappa: found 0.5" in refusal(tmp_path, content, "train.kappa=0.5")


def test_a_profile_takes_back_with_null_what_it_does_not_use(tmp_path):
    full = {"stages": ["ibp", "bab"], "bab_seconds": 5, "certificates": True, "test_images": 50}
    less = {"stages": ["ibp"], "bab_seconds": None, "certificates": False, "test_images": None}
    content = changed(("evaluation", full), ("profiles", {"cpu": {"evaluation": less, "validation_images": 50}}))
    trial = trials_of(tmp_path, content, "cpu")[0]
    assert (trial.evaluation.stages, trial.validation_images) == (("ibp",), 50)


SHORT = {"epochs": 1, "ramp_epochs": 0, "decay_epochs": []}  # the sweep's ramp is longer
ACCEPTED = {
    "what some trials use": [("train.regularisation", 0.1), ("trials", [*BASE["trials"], entry("plain")])],
    "backward iterations of bounds": [
        ("trials", [entry("crown-ibp", "cerdeq", options={"gradient": "unrolled", "backward_iterations": 4})])
    ],
    "no ramp in an entry without one": [("trials", [entry("ibp"), entry("plain", train=SHORT)])],
    "no ramp in a file without one": [("train", NO_RAMP), ("trials", [entry("plain")])],
    "a ramp that the network follows": [
        ("trials", [entry("plain", "cerdeq", options={"early_iterations": 4}, train={"ramp_epochs": 1})])
    ],
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_changes_something_is_accepted(tmp_path, case):
    assert trials_of(tmp_path, changed(*ACCEPTED[case]))


@pytest.mark.parametrize("method", METHODS)
def test_reasons_are_given_for_settings_that_exist(method):
    for options in ({}, {"subselection": 1.0}, {"alpha": 1.0}):
        if options.keys() <= {field.name for field in fields(METHODS[method])}:
            instance = make_method(method, options)
            assert instance.ignored().keys() <= {f.name for kind in (TrainSettings, instance) for f in fields(kind)}
