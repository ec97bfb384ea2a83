"""`--set`: read and refused as keys of the file; networks that it changes are never mistaken for the file's."""

import pytest
from small_sweep import BASE, changed, load_sweep, write


def load(tmp_path, *assignments, profile="full", content=None):
    return load_sweep(write(tmp_path, content or BASE), profile, True, assignments)


def test_a_changed_network_has_the_change_in_its_profile(tmp_path):
    study, original = load(tmp_path, "train.clip_norm=5", "train.decay_epochs=[2]"), load(tmp_path)
    mark = "--set train.clip_norm=5 --set train.decay_epochs=[2]"
    assert study.profile == f"full {mark}"
    assert {(one.train.clip_norm, one.train.decay_epochs) for one in study.trainings} == {(5.0, (2,))}
    assert not {one.key("") for one in study.trainings} & {one.key("") for one in original.trainings}


def test_it_overrides_a_profile_but_not_an_entry_s_recipe(tmp_path):
    content = changed(("profiles", {"small": {"width": 0.5}}), ("trials.0.train", {"clip_norm": 2.0}))
    study = load(tmp_path, "width=0.25", profile="small", content=content)
    assert {one.width for one in study.trainings} == {0.25} and study.profile == "small --set width=0.25"
    study = load(tmp_path, "train.clip_norm=5", content=content)
    assert [training.train.clip_norm for training in study.trainings[::2]] == [2.0, 5.0]


def test_unchanged_networks_are_the_file_s(tmp_path):
    original = load(tmp_path)
    assert load(tmp_path, "train.epochs=4").trainings == original.trainings
    study = load(tmp_path, "seeds=[0]", "resources.cpu=2")
    assert study.trainings == [training for training in original.trainings if training.seed == 0]
    assert study.resources.cpu == 2 and study.profile == "full"
    study = load(tmp_path, "trials=[{model: [cnn5, cnn7], method: ibp}]", "seeds=[0]")
    assert [one.model for one in study.trainings] == ["cnn5", "cnn7"]
    assert study.profile == "full", "rows say what their trials are"


def test_several_spellings_are_one_change(tmp_path):
    one = load(tmp_path, "train.kappa=5e-1", "width=0.5")
    other = load(tmp_path, "width=1", "width=.5", "train={kappa: 0.5}")
    assert (one.profile, one.trainings) == (other.profile, other.trainings), "a later assignment wins"


WRONG = {
    "no value": ("train.epochs", "--set: found 'train.epochs', allowed: KEY=VALUE"),
    "an unknown key": ("epochs=3", "--set: found 'epochs=3', allowed: KEY=VALUE, KEY one of evaluation, "),
    "no YAML": ("seeds=[0", "--set: found 'seeds=[0', allowed: a value in YAML"),
    "an unknown key inside": ("train.epoch=3", "study.yaml --set train.epoch=3: train.epoch: unknown key; allowed: ep"),
    "what does not fit": ("train.epochs=2", "study.yaml --set train.epochs=2: train.decay_epochs: found [3], allowed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_assignment_is_refused_with_what_was_typed(refused, tmp_path, case):
    assignment, expected = WRONG[case]
    assert expected in refused(write(tmp_path, BASE), "--set", assignment)


def test_a_file_that_is_right_with_an_assignment_alone_is_a_sweep_of_changed_networks(tmp_path):
    for wrong in (("train.epochs", 0), ("trials.0.method", "ibpp")):
        study = load(tmp_path, "train.epochs=4", "trials=[{model: cnn5, method: ibp}]", content=changed(wrong))
        assert study.profile == "full --set train.epochs=4"
