"""Which entries of sweep files are the same trial: those are refused as duplicates, and have one key."""

import pytest
from small_sweep import BASE, changed, trials_of, write

from harness.config.radius import Radius
from harness.config.sweep_file import load_sweep
from harness.config.trial import from_dict, to_dict, trial_key

DUPLICATES = {
    "the same": ({"model": "cnn5", "method": "ibp"}, "trials.2", "trials.0"),
    "defaults spelled out": (
        {"model": "cerdeq", "method": "ibp", "options": {"margin": 0.3, "parametrisation": "perron"}},
        "trials.2",
        "trials.1",
    ),
    "a default as an integer": ({"model": "cnn5", "method": "ibp", "width": 1}, "trials.2", "trials.0"),
    "empty options": ({"model": "cnn5", "method": "ibp", "options": {}}, "trials.2", "trials.0"),
    "the sweep's recipe spelled out": (
        {"model": "cnn5", "method": "ibp", "train": {"epochs": 4, "clip_norm": 10}},
        "trials.2",
        "trials.0",
    ),
    "the sweep's eps spelled out": (
        {"model": "cnn5", "method": "ibp", "train": {"eps": 0.0625}},
        "trials.2",
        "trials.0",
    ),
}


@pytest.mark.parametrize("case", DUPLICATES)
def test_an_entry_that_makes_the_same_trial_is_refused(refused, tmp_path, case):
    extra, key, same = DUPLICATES[case]
    message = refused(write(tmp_path, changed(("trials", [*BASE["trials"], extra]))))
    assert f"{key}: " in message
    assert f"the same trial as {same}" in message


def test_a_seed_that_appears_twice_is_refused(refused, tmp_path):
    message = refused(write(tmp_path, changed(("seeds", [0, 1, 0, 2, 1]))))
    assert "seeds: 0 appears twice" in message
    assert "seeds: 1 appears twice" in message
    assert "seeds: 2" not in message


def test_spelling_a_default_out_does_not_change_the_key(tmp_path):
    """The key is of the resolved config: else the same trial is trained again, and a changed default is not seen."""
    short = changed(("trials", [{"model": "cerdeq", "method": "ibp"}]))
    long = changed(("trials", [{"model": "cerdeq", "method": "ibp", "options": {"margin": 0.3, "gain": 0.5}}]))
    keys = [[trial_key(trial, "data") for trial in trials_of(tmp_path, content)] for content in (short, long)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("one", "other"), [(0.25, "1/4"), ("8/255", "16/510"), ("3/255", "1/85"), ("8/255", " 8/255 "), (1, "1.0")]
)
def test_writing_eps_another_way_does_not_change_the_key(tmp_path, one, other):
    """The results directory takes the two for one sweep, so that the same trials would stand in its table twice."""
    trials = [trials_of(tmp_path, changed(("eps", eps)))[0] for eps in (one, other)]
    assert Radius(trials[0].eps) == Radius(trials[1].eps)
    assert trial_key(trials[0], "data") == trial_key(trials[1], "data")


def test_whole_numbers_name_the_trials_that_fractions_do(tmp_path):
    keys = []
    for number in (1, 1.0):
        entry = {
            "model": "cnn5",
            "method": "mtl-ibp",
            "method_options": {"attack_step": number, "attack_radius": 2 * number},
        }
        keys.append([trial_key(trial, "data") for trial in trials_of(tmp_path, changed(("trials", [entry])))])
    assert keys[0] == keys[1]


def test_one_network_in_two_widths_and_two_options_is_four_trials(tmp_path):
    trials = [
        {"model": "cerdeq", "method": "ibp", **extra}
        for extra in ({}, {"width": 0.5}, {"options": {"margin": 0.2}}, {"options": {"gain": None}})
    ]
    content = changed(("trials", trials), ("seeds", [0]))
    assert len({trial_key(trial, "data") for trial in trials_of(tmp_path, content)}) == 4


def test_options_of_methods_are_part_of_a_trial(tmp_path):
    entry = {"model": "cnn5", "method": "crown-ibp"}
    chosen = [{}, {"loss_fusion": False}, {"final_beta": 0.5}]
    content = changed(("trials", [{**entry, "method_options": options} for options in chosen]), ("seeds", [0]))
    trials = load_sweep(write(tmp_path, content), None, False).trials
    assert [trial.method_options for trial in trials] == chosen
    assert len({trial_key(trial, "data") for trial in trials}) == 3
    assert trials[1].label == "cnn5 crown-ibp loss_fusion=False seed 0"
    assert all(from_dict(to_dict(trial)) == trial for trial in trials)
    spelled_out = changed(("trials", [{**entry, "method_options": {"loss_fusion": True, "final_beta": 0.0}}]))
    assert load_sweep(write(tmp_path, spelled_out), None, False).trials[0] == trials[0]
