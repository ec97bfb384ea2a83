"""`include:`: recipes that are written once."""

import pytest
import yaml
from small_sweep import BASE, changed, trials_of, write

from harness.config.sweep_file import ConfigError, load_sweep

RECIPE = {
    "train": {"epochs": 9, "clip_norm": 3.0},
    "seeds": [7],
    "profiles": {"small": {"width": 0.5, "train": {"epochs": 5}}},
}


def included(tmp_path, content, name="recipes/recipe.yaml"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    return write(tmp_path, content, name)


def test_what_stands_in_the_file_goes_before_what_it_includes(tmp_path):
    included(tmp_path, RECIPE)
    content = changed(("include", "recipes/recipe.yaml"), ("profiles", {"small": {"train": {"clip_norm": 2.0}}}))
    full, small = (trials_of(tmp_path, content, profile) for profile in ("full", "small"))
    assert (full[0].train.epochs, full[0].train.clip_norm) == (4, 3.0)
    assert {trial.seed for trial in full} == {0, 1}
    assert (small[0].train.epochs, small[0].train.clip_norm, small[0].width) == (5, 2.0, 0.5)


def test_all_keys_may_be_another_file_s(tmp_path):
    included(tmp_path, BASE)
    assert trials_of(tmp_path, {"include": "recipes/recipe.yaml"}) == trials_of(tmp_path, BASE)


def test_an_included_file_may_include_another_beside_it(tmp_path):
    included(tmp_path, {"include": "inner.yaml", "train": {"kappa": 0.5}})
    included(tmp_path, RECIPE, "recipes/inner.yaml")
    (trial, *_) = trials_of(tmp_path, changed(("include", "recipes/recipe.yaml")))
    assert (trial.train.kappa, trial.train.clip_norm) == (0.5, 3.0)


@pytest.mark.parametrize("named", ["../other.yaml", "/etc/hostname", "", ".", 5, None, ["a.yaml"], "study.yaml"])
def test_only_a_file_below_this_one_s_folder_can_be_included(tmp_path, named):
    write(tmp_path, {}, "other.yaml")
    (tmp_path / "sweeps").mkdir()
    path = write(tmp_path / "sweeps", changed(("include", named)))
    with pytest.raises(ConfigError, match=r"include: found .* allowed: the path of a file below"):
        load_sweep(path, None, True)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    write(tmp_path, RECIPE, "outside.yaml")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps/inside.yaml").symlink_to(tmp_path / "outside.yaml")
    with pytest.raises(ConfigError, match=r"include: found 'inside\.yaml'"):
        load_sweep(write(tmp_path / "sweeps", changed(("include", "inside.yaml"))), None, True)


def test_files_that_include_each_other_are_refused(tmp_path):
    included(tmp_path, {"include": "other.yaml"})
    included(tmp_path, {"include": "recipe.yaml"}, "recipes/other.yaml")
    with pytest.raises(ConfigError, match=r"other\.yaml: include: found 'recipe\.yaml'.*does not include this one"):
        load_sweep(write(tmp_path, changed(("include", "recipes/recipe.yaml"))), None, True)


def test_an_included_file_that_is_not_there_or_no_mapping_is_named(tmp_path):
    path = write(tmp_path, changed(("include", "recipes/recipe.yaml")))
    with pytest.raises(ConfigError, match=r"recipes/recipe\.yaml: cannot be read: No such file"):
        load_sweep(path, None, True)
    included(tmp_path, "- 1\n")
    with pytest.raises(ConfigError, match=r"recipes/recipe\.yaml: found list, allowed: a mapping"):
        load_sweep(path, None, True)


def test_a_wrong_value_is_told_with_the_files_it_may_be_from(tmp_path):
    included(tmp_path, {"train": {"kappa": 5.0}})
    path = write(tmp_path, changed(("include", "recipes/recipe.yaml")))
    with pytest.raises(ConfigError, match=r"train\.kappa: found 5\.0.*includes recipes/recipe\.yaml"):
        load_sweep(path, None, True)


def test_a_profile_cannot_include(tmp_path):
    with pytest.raises(ConfigError, match=r"profiles\.cpu\.include: a profile cannot change this"):
        load_sweep(write(tmp_path, yaml.safe_dump(changed(("profiles", {"cpu": {"include": "x.yaml"}})))), None, True)
