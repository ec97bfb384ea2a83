"""What a network or a training method ignores is refused where an entry sets it, and where all trials ignore it."""

from dataclasses import fields

import pytest
from small_sweep import BASE, changed, trials_of, write

from harness.config.settings import TrainSettings
from harness.methods import METHODS, make_method

NO_RAMP = {"epochs": 4, "batch_size": 64, "ramp_epochs": 0, "decay_epochs": []}


def entry(method, model="cnn5", **keys):
    return {"model": model, "method": method, **keys}


REFUSED = {
    "regularisation of pgd": (entry("pgd", train={"regularisation": 0.1}), "train.regularisation: found 0.1", "bounds"),
    "regularisation of plain": (entry("plain", train={"regularisation": 0}), "train.regularisation: found 0", "bounds"),
    "kappa of plain": (entry("plain", train={"kappa": 0.5}), "train.kappa: found 0.5", "clean cross entropy"),
    "a ramp of plain": (entry("plain", train={"ramp_epochs": 1}), "train.ramp_epochs: found 1", "no radius"),
    "its start": (entry("plain", train={"ramp_start": 2}), "train.ramp_start: found 2", "no radius"),
    "a radius of plain": (entry("plain", train={"eps": 0.1}), "train.eps: found 0.1", "no radius"),
    "final_beta of ibp": (
        entry("ibp", method_options={"final_beta": 0.5}),
        "method_options.final_beta: unknown",
        "ibp",
    ),
    "an attack without room": (
        entry("sabr", method_options={"subselection": 1.0, "attack_steps": 3}),
        "method_options.attack_steps: found 3",
        "the whole ball by subselection 1",
    ),
    "an attack without weight": (
        entry("mtl-ibp", method_options={"alpha": 1.0, "attack_radius": 2.0}),
        "method_options.attack_radius: found 2.0",
        "no weight by alpha 1",
    ),
    "an equilibrium that is not there": (
        entry("ibp", train={"regularise_equilibria": False}),
        "train.regularise_equilibria: found False",
        "'cnn5': there is no equilibrium",
    ),
    "a factor of no decays": (
        entry("ibp", train={"decay_epochs": [], "decay_factor": 0.5}),
        "train.decay_factor: found 0.5",
        "no decay_epochs",
    ),
    "regularisers that eps never lets count": (
        entry("ibp", train={"ramp_epochs": 0, "ramp_start": 1, "regularisation": 0.1}),
        "train.regularisation: found 0.1",
        "no ramp",
    ),
    "regularisers without weight": (
        entry("ibp", model="cerdeq", train={"regularisation": 0, "regularise_equilibria": False}),
        "train.regularise_equilibria: found False",
        "regularisation is 0",
    ),
    "early iterations without a ramp": (
        entry("ibp", model="cerdeq", options={"early_iterations": 4}, train={"ramp_epochs": 0, "ramp_start": 1}),
        "options.early_iterations: found 4",
        "no ramp",
    ),
    "the implicit gradient of unrolled solves": (
        entry("ibp", model="cerdeq", options={"gradient": "unrolled", "backward_iterations": 4}),
        "options.backward_iterations: found 4",
        "the iterations themselves",
    ),
    "a lifted solve of what bounds nothing": (
        entry("plain", model="cerdeq", options={"warm_start": True}),
        "options.warm_start: found True",
        "bounds nothing",
    ),
    "one of several": (entry(["ibp", "pgd"], train={"regularisation": 0.1}), "train.regularisation", "with method pgd"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_entry_s_setting_that_its_trial_ignores_is_refused_with_the_reason(refused, tmp_path, case):
    bad, *expected = REFUSED[case]
    message = refused(write(tmp_path, changed(("trials", [*BASE["trials"], bad]))))
    for part in ("study.yaml: trials.2.", *expected):
        assert part in message, message


JUDGING_REFUSED = {
    "test images beside held-out ones": (
        [("validation_images", 50), ("evaluation.test_images", 50)],
        "evaluation.test_images: found 50",
        "validation_images are judged",
    ),
    "seconds of no branch and bound": (
        [("evaluation.bab_seconds", 5)],
        "evaluation.bab_seconds: found 5",
        "'bab' is not in stages",
    ),
    "branches of none": (
        [("evaluation.bab_branches", 5)],
        "evaluation.bab_branches: found 5",
        "'bab' is not in stages",
    ),
    "certificates of nothing": (
        [("evaluation", {"stages": ["ibp", "crown-ibp"], "certificates": True})],
        "evaluation.certificates: found True",
        "none of crown, alpha-crown, bab is in stages",
    ),
    "a width that each entry has": (
        [("width", 0.5), ("trials", [entry("ibp") | {"width": 0.25}])],
        "width: found 0.5",
        "each of trials has its own",
    ),
}


@pytest.mark.parametrize("case", JUDGING_REFUSED)
def test_what_a_file_says_of_judging_and_nothing_uses_is_refused(refused, tmp_path, case):
    changes, *expected = JUDGING_REFUSED[case]
    message = refused(write(tmp_path, changed(*changes)))
    for part in ("study.yaml: ", *expected):
        assert part in message, message


def test_a_profile_takes_back_with_null_what_it_does_not_use(tmp_path):
    whole = {"stages": ["ibp", "bab"], "bab_seconds": 5, "certificates": True, "test_images": 50}
    less = {"stages": ["ibp"], "bab_seconds": None, "certificates": False, "test_images": None}
    content = changed(("evaluation", whole), ("profiles", {"cpu": {"evaluation": less, "validation_images": 50}}))
    trial = trials_of(tmp_path, content, "cpu")[0]
    assert (trial.evaluation.stages, trial.validation_images) == (("ibp",), 50)


def test_an_unrolled_solve_s_bounds_pulled_back_by_crown_take_backward_iterations(tmp_path):
    options = {"gradient": "unrolled", "backward_iterations": 4}
    trials = [entry("crown-ibp", model="cerdeq", options=options)]
    assert trials_of(tmp_path, changed(("trials", trials)))[0].options == options


def test_what_trials_share_may_be_ignored_by_some(tmp_path):
    content = changed(
        ("train.regularisation", 0.1), ("train.kappa", 0.2), ("trials", [*BASE["trials"], entry("plain")])
    )
    assert len(trials_of(tmp_path, content)) == 6


def test_what_all_trials_ignore_is_refused(refused, tmp_path):
    content = changed(("train", {**NO_RAMP, "kappa": 0.5}), ("trials", [entry(["plain"], model=["cnn5", "cnn6"])]))
    message = refused(write(tmp_path, content))
    for part in ("train.kappa: found 0.5", "clean cross entropy", "no other trial uses it", "profile full"):
        assert part in message, message


def test_a_ramp_of_no_epochs_says_that_there_is_none(tmp_path):
    short = {"epochs": 1, "ramp_epochs": 0, "decay_epochs": []}  # the sweep's ramp is longer
    assert len(trials_of(tmp_path, changed(("trials", [entry("ibp"), entry("plain", train=short)])))) == 4
    assert len(trials_of(tmp_path, changed(("train", NO_RAMP), ("trials", [entry("plain")])))) == 2


def test_a_ramp_of_plain_is_taken_where_the_network_follows_it(tmp_path):
    options = {"iterations": 10, "early_iterations": 4}
    trials = [entry("plain", model="cerdeq", options=options, train={"ramp_epochs": 1})]
    assert trials_of(tmp_path, changed(("trials", trials)))[0].train.ramp_epochs == 1


def test_set_is_refused_so_too(refused, tmp_path):
    content = changed(("train", NO_RAMP), ("trials", [entry("plain")]))
    message = refused(write(tmp_path, content), "--set", "train.kappa=0.5")
    assert "--set train.kappa=0.5: train.kappa: found 0.5" in message


@pytest.mark.parametrize("method", METHODS)
def test_reasons_are_given_for_settings_there_are(method):
    for options in ({}, {"subselection": 1.0}, {"alpha": 1.0}):
        if options.keys() <= {field.name for field in fields(METHODS[method])}:
            made = make_method(method, options)
            known = {field.name for kind in (TrainSettings, made) for field in fields(kind)}
            assert made.ignored().keys() <= known
            assert all(reason.startswith("it") for reason in made.ignored().values())
