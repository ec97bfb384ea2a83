"""Profiles and includes: which profile is selected, what it changes, and in which order keys are overridden."""

import pytest
from small_sweep import BASE, changed, load_sweep, refusal, trainings_of, write

from harness.config.sweep import FIXED
from harness.settings import Evaluation

WRONG = [
    ({"train": {"epochs": 2}}, "train.decay_epochs: found [3]"),
    ({"seed": [0]}, "seed: unknown key"),
    *(({key: BASE.get(key, {})}, f"profiles.bad.{key}: a profile cannot change this") for key in sorted(FIXED)),
]


@pytest.mark.parametrize(("profile", "problem"), WRONG)
def test_a_wrong_profile_is_refused_where_it_is_selected(tmp_path, profile, problem):
    content = changed(("profiles", {"good": {}, "bad": profile}))
    message = refusal(tmp_path, content, "bad")
    assert f"study.yaml: {problem}" in message and "(profile bad" in message and len(message.splitlines()) == 1
    assert trainings_of(tmp_path, content, "good")


def test_an_unknown_profile_is_refused_with_all_profiles(refused, tmp_path):
    path = write(tmp_path, changed(("profiles", {2: {}, "small": {}})))
    message = refused(path, "--profile", "smal")
    for part in (str(path), "'smal'", "'small'?", "full, 2, small"):
        assert part in message


def test_an_entry_s_recipe_overrides_a_profile_s(tmp_path):
    profiles = {"short": {"train": {"epochs": 2, "ramp_epochs": 1, "decay_epochs": [1]}}}
    content = changed(("trials.0.train", {"epochs": 9}), ("profiles", profiles))
    recipes = {trial.model: trial.train for trial in trainings_of(tmp_path, content, "short")}
    assert recipes["cnn5"] == recipes["cerdeq"].replace(epochs=9)
    assert recipes["cerdeq"].epochs == 2


def test_mappings_are_merged_key_by_key_and_lists_are_replaced(tmp_path):
    profile = {
        "seeds": [7],
        "width": 0.5,
        "train_images": None,
        "train": {"epochs": 3, "ramp_epochs": 1, "decay_epochs": []},
        "evaluation": {"attack_steps": 5},
        "resources": {"gpu": 0},
        "trials": [{"model": "cnn7", "method": "ibp"}],
    }
    content = changed(
        ("evaluation", {"test_images": 50}), ("resources", {"cpu": 2, "gpu": 0.5}), ("train_images", 100),
        ("profiles", {"small": profile}),
    )  # fmt: skip
    path = write(tmp_path, content)
    sweep, full = load_sweep(path, "small", True), load_sweep(path, "full", True)
    (config,) = sweep.trainings
    assert config.train == full.trainings[0].train.replace(epochs=3, ramp_epochs=1, decay_epochs=())
    assert sweep.evaluations == [Evaluation(eps="1/16", test_images=50, attack_steps=5)]
    assert (sweep.resources.cpu, sweep.resources.gpu, config.train_images) == (2, 0, None)
    assert (config.model, config.seed, config.width, sweep.profile) == ("cnn7", 7, 0.5, "small")
    assert (full.profile, full.trainings[0].width) == ("full", 1.0)


@pytest.mark.parametrize(
    ("profiles", "selected", "has_gpu", "expected"),
    [
        ({"cpu": {}}, None, False, "cpu"),
        ({"cpu": {}}, None, True, "full"),
        ({"cpu": {}}, "full", False, "full"),
        ({"small": {}}, None, False, "full"),
        ({2: {}}, "2", True, "2"),
        (None, None, False, "full"),
    ],
)
def test_without_a_gpu_the_cpu_profile_is_the_default(tmp_path, profiles, selected, has_gpu, expected):
    sweep = load_sweep(write(tmp_path, changed(("profiles", profiles))), selected, has_gpu)
    assert sweep.profile == expected


@pytest.fixture
def recipes(tmp_path):
    """The directory of included files."""
    (tmp_path / "recipes").mkdir()
    return tmp_path / "recipes"


def test_a_file_s_keys_override_those_it_includes(tmp_path, recipes):
    profiles = {"small": {"width": 0.5, "train": {"epochs": 5}}}
    write(recipes, {"train": {"epochs": 9, "clip_norm": 3.0}, "seeds": [7], "profiles": profiles}, "recipe.yaml")
    content = changed(("include", "recipes/recipe.yaml"), ("profiles", {"small": {"train": {"clip_norm": 2.0}}}))
    full, small = (trainings_of(tmp_path, content, profile) for profile in ("full", "small"))
    assert (full[0].train.epochs, full[0].train.clip_norm) == (4, 3.0)
    assert {trial.seed for trial in full} == {0, 1}
    assert (small[0].train.epochs, small[0].train.clip_norm, small[0].width) == (5, 2.0, 0.5)


def test_an_included_file_may_have_all_keys_and_include_another_beside_it(tmp_path, recipes):
    write(recipes, {**BASE, "include": "inner.yaml"}, "recipe.yaml")
    write(recipes, {"train": {"kappa": 0.5}}, "inner.yaml")
    trials = trainings_of(tmp_path, {"include": "recipes/recipe.yaml"})
    assert trials == trainings_of(tmp_path, changed(("train.kappa", 0.5)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (5, BASE, "study.yaml: include: found 5, allowed: the relative path of another file"),
        ("/etc/passwd", BASE, "study.yaml: include: found '/etc/passwd', allowed: the relative path"),
        ("link.yaml", BASE, "study.yaml: include: found 'link.yaml', allowed: the relative path"),
        ("recipes/recipe.yaml", {"include": "../../other.yaml"}, "recipe.yaml: include: found '../../other.yaml'"),
        ("nowhere.yaml", BASE, "study.yaml: include: /"),
        ("recipes/recipe.yaml", "- secret\n", "recipes/recipe.yaml: found a list, allowed: a mapping"),
        ("recipes/recipe.yaml", "secret\n: secret", "recipes/recipe.yaml: is not YAML: "),
        ("recipes/recipe.yaml", {"include": "../study.yaml"}, "recipe.yaml: include: found '../study.yaml'"),
        ("recipes/recipe.yaml", {"train": {"kappa": 5.0}}, "less than or equal to 1 (inc"),
    ],
)
def test_a_wrong_include_is_refused_with_the_included_file(tmp_path, recipes, name, content, message):
    write(recipes, content, "recipe.yaml")
    (tmp_path / "link.yaml").symlink_to("/etc/passwd")
    printed = refusal(tmp_path, changed(("include", name)))
    assert message in printed and "secret" not in printed and "root:" not in printed
