"""`--set`: typed and refused as keys of the file, and never mistaken for the file's own trials."""

import dataclasses

import pytest
from small_sweep import BASE, changed, trials_of, write

from harness.config.sweep_file import load_sweep
from harness.config.trial import trial_key

PROFILES = ("profiles", {"small": {"width": 0.5}})


def loaded(tmp_path, *assignments, profile="full", content=None):
    return load_sweep(write(tmp_path, content or changed(PROFILES)), profile, True, assignments)


def keys(trials):
    return {trial_key(trial, "data") for trial in trials}


def test_a_setting_is_changed_in_each_trial_and_their_profile_says_so(tmp_path):
    sweep = loaded(tmp_path, "train.clip_norm=5", "train.decay_epochs=[2]")
    mark = "--set train.clip_norm=5 --set train.decay_epochs=[2]"
    assert {trial.profile for trial in sweep.trials} == {f"full {mark}"}
    assert {(trial.train.clip_norm, trial.train.decay_epochs) for trial in sweep.trials} == {(5.0, (2,))}
    assert (sweep.profile, sweep.changed) == ("full", mark)
    assert not keys(sweep.trials) & keys(loaded(tmp_path).trials)


def test_it_goes_before_the_profile_s(tmp_path):
    sweep = loaded(tmp_path, "width=0.25", profile="small")
    assert {(trial.width, trial.profile) for trial in sweep.trials} == {(0.25, "small --set width=0.25")}


def test_an_entry_s_own_recipe_goes_before_it(tmp_path):
    content = changed(("trials.0.train", {"clip_norm": 2.0}))
    sweep = loaded(tmp_path, "train.clip_norm=5", content=content)
    assert [trial.profile for trial in sweep.trials[::2]] == ["full", "full --set train.clip_norm=5"]


def test_fewer_seeds_are_the_same_trials(tmp_path):
    sweep = loaded(tmp_path, "seeds=[0]", "resources.cpu=2")
    assert sweep.trials == [trial for trial in loaded(tmp_path).trials if trial.seed == 0]
    assert (sweep.resources.cpu, sweep.changed) == (2, "")


def test_what_changes_nothing_names_the_same_trials(tmp_path):
    assert loaded(tmp_path, "train.epochs=4").trials == loaded(tmp_path).trials


def test_it_can_be_written_in_several_ways(tmp_path):
    one, other = (
        loaded(tmp_path, *given) for given in (["train.kappa=5e-1", "width=0.5"], ["width=.5", "train.kappa=0.5"])
    )
    assert one == other


def test_entries_that_the_file_does_not_have_are_marked(tmp_path):
    sweep = loaded(tmp_path, "trials=[{model: [cnn5, cnn6], method: ibp}]", "seeds=[0]")
    assert [(t.model, t.profile) for t in sweep.trials] == [("cnn5", "full"), ("cnn6", "full --set trials")]


def test_without_it_nothing_is_changed(tmp_path):
    assert loaded(tmp_path) == dataclasses.replace(loaded(tmp_path), changed="")
    assert loaded(tmp_path).trials == trials_of(tmp_path, BASE)


WRONG = {
    "no value": (["train.epochs"], ["--set: found 'train.epochs'", "KEY=VALUE"]),
    "no key": (["=3"], ["--set: found '=3'", "KEY=VALUE"]),
    "an unknown key": (["epochs=3"], ["--set: found 'epochs=3'", "train"]),
    "an unknown key inside": (["train.epoch=3"], ["--set train.epoch=3: train.epoch: unknown key", "epochs"]),
    "what a profile cannot change": (["eps=0.1"], ["--set: found 'eps=0.1'", "KEY one of evaluation, "]),
    "a name": (["name=other"], ["--set: found 'name=other'"]),
    "out of range": (["train.epochs=0"], ["--set train.epochs=0: train.epochs: found 0", "at least 1"]),
    "another type": (["train.epochs=two"], ["train.epochs: found 'two'", "integer"]),
    "what does not fit": (["train.epochs=2"], ["--set train.epochs=2: train.decay_epochs: found [3]", "epochs = 2"]),
    "a list's item": (["trials.0.width=1"], ["trials: found {'0': {'width': 1}}"]),
    "no YAML": (["seeds=[0"], ["--set: found 'seeds=[0'", "YAML"]),
    "a mapping and a key in it": (
        ["train={epochs: 3}", "train.epochs=4"],
        ["--set: found 'train={epochs: 3}'", "keys in it"],
    ),
    "twice": (["width=1", "width=2"], ["--set: found 'width=1'", "each key once"]),
    "a trial of it": (["width=1e9"], ["--set width=1e9: width"]),
    "seeds twice": (["seeds=[1, 1]"], ["--set 'seeds=[1, 1]': seeds: 1 appears twice"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_assignment_is_told_as_such(refused, tmp_path, case):
    assignments, expected = WRONG[case]
    message = refused(write(tmp_path, BASE), *(word for text in assignments for word in ("--set", text)))
    for part in expected:
        assert part in message, message
    assert "study.yaml" not in message


def test_a_wrong_file_is_told_first(refused, tmp_path):
    message = refused(write(tmp_path, changed(("train.epochs", 0))), "--set", "train.epochs=3")
    assert "study.yaml: train.epochs: found 0" in message
