"""`include:`: keys that several sweep files share."""

import pytest
from small_sweep import BASE, changed, trials_of, write

from harness.config.sweep_file import ConfigError, load_sweep

RECIPE = {
    "train": {"epochs": 9, "clip_norm": 3.0},
    "seeds": [7],
    "profiles": {"small": {"width": 0.5, "train": {"epochs": 5}}},
}


def write_recipe(tmp_path, content, name="recipes/recipe.yaml"):
    (tmp_path / "recipes").mkdir(exist_ok=True)
    return write(tmp_path, content, name)


def test_a_file_s_keys_override_those_it_includes(tmp_path):
    write_recipe(tmp_path, RECIPE)
    content = changed(("include", "recipes/recipe.yaml"), ("profiles", {"small": {"train": {"clip_norm": 2.0}}}))
    full, small = (trials_of(tmp_path, content, profile) for profile in ("full", "small"))
    assert (full[0].train.epochs, full[0].train.clip_norm) == (4, 3.0)
    assert {trial.seed for trial in full} == {0, 1}
    assert (small[0].train.epochs, small[0].train.clip_norm, small[0].width) == (5, 2.0, 0.5)


def test_an_included_file_may_have_all_keys_and_include_another_beside_it(tmp_path):
    write_recipe(tmp_path, {**BASE, "include": "inner.yaml"})
    write_recipe(tmp_path, {"train": {"kappa": 0.5}}, "recipes/inner.yaml")
    trials = trials_of(tmp_path, {"include": "recipes/recipe.yaml"})
    assert trials == trials_of(tmp_path, changed(("train.kappa", 0.5)))


WRONG = {  # the included file's name and content, the message
    "no text": (5, BASE, "study.yaml: include: found 5, allowed: the path of another file"),
    "no file": ("nowhere.yaml", BASE, "nowhere.yaml: cannot be read: No such file"),
    "no mapping": ("recipes/recipe.yaml", "- 1\n", "recipes/recipe.yaml: found list, allowed: a mapping"),
    "a circle": ("recipes/recipe.yaml", {"include": "../study.yaml"}, "recipe.yaml: include: found '../study.yaml'"),
    "a wrong value": (
        "recipes/recipe.yaml", {"train": {"kappa": 5.0}}, "kappa: found 5.0, allowed: from 0 to 1 (profile full, inc",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_reported_with_the_included_file(tmp_path, case):
    name, content, message = WRONG[case]
    write_recipe(tmp_path, content)
    with pytest.raises(ConfigError) as error:
        load_sweep(write(tmp_path, changed(("include", name))), None, True)
    assert message in str(error.value)
