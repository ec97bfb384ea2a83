"""Profiles: which is selected, what it changes, and that a wrong one is refused though another is selected."""

import dataclasses

import pytest
from small_sweep import BASE, changed, trials_of, write

from harness.config.settings import EvaluationSettings
from harness.config.sweep_file import ConfigError, load_sweep

WRONG = {  # profiles, the message's parts
    "a wrong value": ({"bad": {"train": {"epochs": -3}}}, ["train.epochs: found -3", "profile bad"]),
    "what does not fit the rest": ({"bad": {"train": {"epochs": 2}}}, ["decay_epochs: found [3]", "profile bad"]),
    "an unknown key": ({"bad": {"seed": [0]}}, ["seed: unknown key", "seeds", "profile bad"]),
    "a duplicate": ({"bad": {"seeds": [4, 4]}}, ["seeds: 4 appears twice", "profile bad"]),
    "a wrong grid": ({"bad": {"trials": [{"model": "cnn5", "method": []}]}}, ["trials.0.method: found []", "bad"]),
    "a reserved name": ({"full": {}}, ["profiles.full: the name of the file without a profile"]),
    **{
        key: ({"bad": {key: BASE.get(key, {})}}, [f"profiles.bad.{key}: a profile cannot change this"])
        for key in ("name", "dataset", "eps", "profiles", "include", "plugins")
    },
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_profile_is_refused_though_another_is_selected(tmp_path, case):
    profiles, expected = WRONG[case]
    with pytest.raises(ConfigError) as error:
        load_sweep(write(tmp_path, changed(("profiles", {"good": {}, **profiles}))), "good", True)
    for part in expected:
        assert part in str(error.value)


def test_an_unknown_profile_is_refused_with_the_known_ones(refused, tmp_path):
    path = write(tmp_path, changed(("profiles", {2: {}, "small": {}})))
    message = refused(path, "--profile", "smal")
    for part in (str(path), "'smal'", "'small'?", "full, 2, small"):
        assert part in message


def test_a_trial_s_recipe_overrides_a_profile_s(tmp_path):
    profiles = {"short": {"train": {"epochs": 2, "ramp_epochs": 1, "decay_epochs": [1]}}}
    path = write(tmp_path, changed(("trials.0.train", {"epochs": 9}), ("profiles", profiles)))
    recipes = {trial.model: trial.train for trial in load_sweep(path, "short", True).trials}
    assert recipes["cnn5"] == dataclasses.replace(recipes["cerdeq"], epochs=9)
    assert recipes["cerdeq"].epochs == 2


def test_mappings_are_merged_key_by_key(tmp_path):
    profile = {
        "seeds": [7],
        "width": 0.5,
        "train_images": None,
        "train": {"epochs": 3, "ramp_epochs": 1},
        "evaluation": {"attack_steps": 5},
        "resources": {"gpu": 0},
    }
    content = changed(
        ("evaluation", {"test_images": 50}), ("resources", {"cpu": 2, "gpu": 0.5}), ("train_images", 100),
        ("profiles", {"small": profile}),
    )  # fmt: skip
    path = write(tmp_path, content)
    sweep, full = load_sweep(path, "small", True), load_sweep(path, "full", True)
    config = sweep.trials[0]
    assert config.train == dataclasses.replace(full.trials[0].train, epochs=3, ramp_epochs=1)
    assert config.evaluation == EvaluationSettings(test_images=50, attack_steps=5)
    assert (sweep.resources.cpu, sweep.resources.gpu, config.train_images) == (2, 0, None)
    assert ({trial.seed for trial in sweep.trials}, config.width, config.profile) == ({7}, 0.5, "small")
    assert (full.profile, full.trials[0].profile, full.trials[0].width) == ("full", "full", 1.0)


def test_lists_are_replaced(tmp_path):
    trials = [{"model": "cnn7", "method": "ibp"}]
    content = changed(("profiles", {"one": {"trials": trials, "train": {"decay_epochs": []}}}))
    configs = trials_of(tmp_path, content, "one")
    assert {config.model for config in configs} == {"cnn7"}
    assert configs[0].train.decay_epochs == ()


@pytest.mark.parametrize(
    ("profiles", "selected", "has_gpu", "expected"),
    [
        ({"cpu": {}}, None, False, "cpu"),
        ({"cpu": {}}, None, True, "full"),
        ({"cpu": {}}, "full", False, "full"),
        ({"cpu": {}}, "cpu", True, "cpu"),
        ({"small": {}}, None, False, "full"),
        ({2: {}}, "2", True, "2"),
        (None, None, False, "full"),
    ],
)
def test_without_a_gpu_the_cpu_profile_is_the_default(tmp_path, profiles, selected, has_gpu, expected):
    sweep = load_sweep(write(tmp_path, changed(("profiles", profiles))), selected, has_gpu)
    assert sweep.profile == expected
    assert {trial.profile for trial in sweep.trials} == {expected}
