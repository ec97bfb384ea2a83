"""Profiles: which is picked, what it changes, and that a bad one is told though another is chosen."""

import dataclasses

import pytest
from small_sweep import BASE, changed, trials_of, write

from harness.config.settings import EvaluationSettings
from harness.config.sweep_file import ConfigError, load_sweep


@pytest.mark.parametrize("has_gpu", [True, False])
@pytest.mark.parametrize("asked", [None, "full", "good", "bad"])
def test_a_bad_profile_is_told_though_another_is_chosen(tmp_path, has_gpu, asked):
    path = write(tmp_path, changed(("profiles", {"good": {}, "bad": {"train": {"epochs": -3}}})))
    with pytest.raises(ConfigError, match=r"train.epochs: found -3.*bad"):
        load_sweep(path, asked, has_gpu)


def test_a_profile_whose_parts_do_not_fit_the_rest_is_refused(tmp_path):
    path = write(tmp_path, changed(("profiles", {"short": {"train": {"epochs": 2}}})))
    with pytest.raises(ConfigError, match=r"train.decay_epochs: found \[3\].*epochs = 2.*short"):
        load_sweep(path, None, True)


def test_duplicates_that_only_a_profile_makes_are_told(tmp_path):
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


def test_an_unknown_profile_is_told_with_those_there_are(refused, tmp_path):
    path = write(tmp_path, changed(("profiles", {"cpu": {}, "small": {}})))
    message = refused(path, "--profile", "smal")
    for part in (str(path), "'smal'", "'small'?", "full", "cpu"):
        assert part in message


def test_an_unknown_profile_is_told_where_one_is_called_by_a_number(refused, tmp_path):
    message = refused(write(tmp_path, changed(("profiles", {2: {}}))), "--profile", "3")
    assert "unknown profile '3'. Known: full, 2" in message


def test_a_profile_called_by_a_number_can_be_chosen(tmp_path):
    sweep = load_sweep(write(tmp_path, changed(("profiles", {2: {"seeds": [7]}}))), "2", True)
    assert sweep.profile == "2"
    assert {trial.seed for trial in sweep.trials} == {7}


def test_a_trial_s_recipe_goes_before_a_profile_s(tmp_path):
    """What the entry leaves is the profile's, and what does not fit together is told with the profile's name."""
    profiles = {"short": {"train": {"epochs": 2, "ramp_epochs": 1, "decay_epochs": [1]}}}
    path = write(tmp_path, changed(("trials.0.train", {"epochs": 9}), ("profiles", profiles)))
    recipes = {trial.model: trial.train for trial in load_sweep(path, "short", True).trials}
    assert recipes["cnn5"] == dataclasses.replace(recipes["cerdeq"], epochs=9)
    assert recipes["cerdeq"].epochs == 2
    path = write(tmp_path, changed(("trials.0.train", {"decay_epochs": [3]}), ("profiles", profiles)))
    with pytest.raises(ConfigError, match=r"trials\.0\.train\.decay_epochs: found \[3\].*epochs = 2.*short"):
        load_sweep(path, None, True)


def test_a_profile_s_trials_have_recipes_of_their_own(tmp_path):
    entry = {"model": "cnn5", "method": "ibp", "train": {"epochs": 1, "ramp_epochs": 0, "decay_epochs": []}}
    path = write(tmp_path, changed(("trials.0.train", {"epochs": 9}), ("profiles", {"one": {"trials": [entry]}})))
    assert {trial.train.epochs for trial in load_sweep(path, "one", True).trials} == {1}
    assert {trial.train.epochs for trial in load_sweep(path, "full", True).trials} == {9, 4}


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
def test_without_a_gpu_the_cpu_profile_is_picked_unless_another_is_asked_for(
    tmp_path, profiles, asked, has_gpu, expected
):
    path = write(tmp_path, changed(("profiles", profiles)))
    sweep = load_sweep(path, asked, has_gpu)
    assert sweep.profile == expected
    assert {trial.profile for trial in sweep.trials} == {expected}
