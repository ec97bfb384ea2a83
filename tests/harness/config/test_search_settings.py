"""The key `search`: what is refused, what it makes of entries, and that it leaves the file's trials alone."""

import pytest
from small_sweep import changed, write

from harness.config.sweep_file import load_sweep
from harness.config.trial import trial_key
from harness.errors import InputError

SEARCH = {"spaces": {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}, "trials": 3}
WRONG = {
    "an unknown key": ({"budget": 3}, ["search.budget: unknown key", "trials", "hours"]),
    "an unknown sampler": ({"sampler": "tpa"}, ["search.sampler: found 'tpa'", "'tpe'"]),
    "an unknown objective": ({"objectives": ["loss"]}, ["search.objectives.0: found 'loss'", "certified_error"]),
    "no budget": ({"trials": None}, ["search.trials: found None", "hours"]),
    "a budget of nothing": ({"trials": 0}, ["search.trials: found 0"]),
    "no spaces": ({"spaces": {}}, ["search.spaces: found {}"]),
    "more seeds than the sweep's": ({"seeds": 3}, ["search.seeds: found 3", "at most the sweep's 2"]),
    "halving with a front": (
        {"asha": {"min_epochs": 1}, "objectives": ["certified_error", "standard_error"]},
        ["search.asha", "objectives"],
    ),
    "an unknown kind of space": ({"spaces": {"train.l1": {"unform": [0, 1]}}}, ["train.l1.unform", "log_uniform"]),
    "two kinds of space": (
        {"spaces": {"train.l1": {"uniform": [0, 1], "choice": [0, 1]}}},
        ["search.spaces.train.l1", "one of uniform"],
    ),
    "ends the wrong way": ({"spaces": {"train.l1": {"uniform": [1, 0]}}}, ["train.l1.uniform: found [1.0, 0.0]"]),
    "a logarithm of nothing": ({"spaces": {"train.l1": {"log_uniform": [0, 1]}}}, ["train.l1.log_uniform", "above 0"]),
    "one choice": ({"spaces": {"train.l1": {"choice": [0]}}}, ["train.l1.choice: found [0]", "two different"]),
    "a key of no section": ({"spaces": {"epochs": {"integer": [1, 2]}}}, ["search.spaces.epochs", "train, options"]),
    "what no entry takes": ({"spaces": {"method_options.alpha": {"uniform": [0, 1]}}}, ["method_options.alpha"]),
    "an end that cannot be had": ({"spaces": {"train.kappa": {"uniform": [0, 2]}}}, ["train.kappa: found 2.0", "1"]),
    "ends that do not fit the rest": (
        {"spaces": {"train.ramp_epochs": {"integer": [1, 9]}}},
        ["search.spaces.train.ramp_epochs", "found 9", "ramp"],
    ),
    "halving that begins after the end": (
        {"asha": {"min_epochs": 1000}},
        ["search.asha.min_epochs: found 1000", "less than epochs"],
    ),
    "an entry without a space": (
        {"spaces": {"options.margin": {"uniform": [0.1, 0.5]}}},
        ["search.spaces: found none for cnn5 ibp"],
    ),
}


def load(tmp_path, *changes, assignments=(), **search):
    content = changed(("search", SEARCH | search), *changes)
    return load_sweep(write(tmp_path, content), "full", True, assignments)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_by_file_and_key(tmp_path, case):
    search, expected = WRONG[case]
    with pytest.raises(InputError) as error:
        load(tmp_path, **search)
    assert all(part in str(error.value) for part in ["study.yaml: ", *expected]), error.value


def test_validation_images_of_the_sweep_are_refused(tmp_path):
    with pytest.raises(InputError, match="validation_images: found 50, allowed: 0 beside search"):
        load(tmp_path, ("validation_images", 50))


def test_a_space_holds_for_the_entries_that_use_it(tmp_path):
    spaces = SEARCH["spaces"] | {"options.margin": {"uniform": [0.1, 0.5]}}
    plain, cerdeq = load(tmp_path, spaces=spaces).searched
    assert set(plain.spaces) == {"train.learning_rate"} and set(cerdeq.spaces) == set(spaces)
    assert cerdeq.written == {"train.learning_rate": 5e-4, "options.margin": 0.3}
    made = cerdeq.config({"train.learning_rate": 1e-3, "options.margin": 0.2})
    assert (made.train.learning_rate, made.options) == (1e-3, {"margin": 0.2})
    assert cerdeq.config(cerdeq.written) == cerdeq.base, "a default that is said is the same trial"


def test_an_entry_is_found_among_choices_that_write_it_in_another_way(tmp_path):
    spaces = {
        "train.clip_norm": {"choice": [1, 10, None]},
        "train.eps": {"choice": ["8/255", "1/16"]},
        "train.decay_epochs": {"choice": [[2], [3]]},
        "options.iterations": {"choice": [8, 10]},
        "options.gain": {"choice": [None, 0.5]},
    }
    searched = load(tmp_path, ("train.eps", "2/32"), spaces=spaces).searched[1]
    assert searched.written == {
        "train.clip_norm": 10, "train.eps": "1/16", "train.decay_epochs": [3], "options.iterations": 10,
        "options.gain": 0.5,
    }  # fmt: skip
    assert searched.config(searched.written) == searched.base
    spaces["train.clip_norm"] = {"choice": [1, None]}
    assert load(tmp_path, ("train.eps", "2/32"), spaces=spaces).searched[1].written is None


def test_a_search_leaves_the_keys_of_what_is_written_alone(tmp_path):
    plain = load_sweep(write(tmp_path, changed()), "full", True).trials
    assert [trial_key(one, "data") for one in load(tmp_path).trials] == [trial_key(one, "data") for one in plain]


def test_set_marks_candidates_too_and_a_budget_is_no_change(tmp_path):
    marked = load(tmp_path, assignments=["train.epochs=5", "search.trials=9"])
    assert marked.search.trials == 9
    for entry in marked.searched:
        made = entry.config({"train.learning_rate": 1e-3})
        assert made.profile == "full --set train.epochs=5" and made.train.epochs == 5
    assert load(tmp_path, assignments=["search.trials=9"]).searched[0].base.profile == "full"


def test_entries_that_differ_in_what_is_searched_alone_are_refused(tmp_path):
    one = {"model": "cnn5", "method": "ibp"}
    twice = [one | {"train": {"learning_rate": rate}} for rate in (1e-3, 2e-3)]
    with pytest.raises(InputError, match="trials: cnn5 ibp: two entries that differ only in settings"):
        load(tmp_path, ("trials", twice))
    load(tmp_path, ("trials", [one, one | {"train": {"kappa": 0.1}}]))
