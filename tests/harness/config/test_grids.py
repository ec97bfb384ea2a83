"""Lists in an entry of `trials`: which trials they make, and which lists are refused."""

from inspect import signature

import pytest
from small_sweep import changed, trials_of, write

from baselines import registry
from harness.config.grid import expand, takes_list
from harness.config.settings import EvaluationSettings, TrainSettings
from harness.config.sweep_file import ConfigError, load_sweep
from harness.config.trial import trial_key


def entry(**keys):
    return {"model": "cerdeq", "method": "ibp", **keys}


def expanded(tmp_path, *entries):
    """The trials of these entries under one seed."""
    return trials_of(tmp_path, changed(("trials", list(entries)), ("seeds", [0])))


def test_a_list_stands_for_as_many_entries(tmp_path):
    trials = expanded(tmp_path, entry(options={"margin": [0.1, 0.2]}))
    assert trials == expanded(tmp_path, entry(options={"margin": 0.1}), entry(options={"margin": 0.2}))


def test_lists_make_a_product_the_first_one_slowest(tmp_path):
    trials = expanded(tmp_path, entry(options={"margin": [0.1, 0.2], "gain": [None, 0.4]}, width=[0.5, 0.25]))
    values = [(trial.options["margin"], trial.options["gain"], trial.width) for trial in trials]
    assert values == [(m, g, w) for m in (0.1, 0.2) for g in (None, 0.4) for w in (0.5, 0.25)]


def test_every_key_that_is_no_list_by_its_type_may_be_one(tmp_path):
    keys = {
        "model": ["cnn5", "cnn7"],
        "method": ["mtl-ibp", "sabr"],
        "method_options": {"attack_steps": [1, 2]},
        "width": [0.5, None],
        "train": {"clip_norm": [None, 5.0]},
    }
    trials = expanded(tmp_path, keys)
    assert len({trial_key(trial, "data") for trial in trials}) == len(trials) == 2**5


def test_depths_are_choices(tmp_path):
    trials = expanded(tmp_path, entry(model="cnn", options={"depth": [5, 8]}))
    assert [trial.label for trial in trials] == ["cnn ibp depth=5 seed 0", "cnn ibp depth=8 seed 0"]


def test_lists_in_zip_advance_together(tmp_path):
    pairs = entry(model=["cnn5", "cerdeq"], width=[0.5, 1], options=[{}, {"margin": 0.1}], zip=["model", "options"])
    values = [(trial.model, trial.options, trial.width) for trial in expanded(tmp_path, pairs)]
    assert values == [(m, o, w) for m, o in (("cnn5", {}), ("cerdeq", {"margin": 0.1})) for w in (0.5, 1.0)]


def test_mappings_may_be_listed_and_hold_lists(tmp_path):
    trials = expanded(tmp_path, entry(options=[{"recurrent": False}, {"margin": [0.1, 0.2]}]))
    assert [trial.options for trial in trials] == [{"recurrent": False}, {"margin": 0.1}, {"margin": 0.2}]
    trials = expanded(tmp_path, entry(train=[{"decay_epochs": [2, 3]}, {"decay_epochs": []}]))
    assert [trial.train.decay_epochs for trial in trials] == [(2, 3), ()], "a list by its type stays one"


def test_which_settings_are_lists_by_their_type():
    for kind, lists in ((TrainSettings, {"decay_epochs"}), (EvaluationSettings, {"stages"})):
        parameters = signature(kind).parameters
        assert {name for name, parameter in parameters.items() if takes_list(parameter.annotation)} == lists


def test_an_option_is_a_list_or_a_choice_by_its_type(monkeypatch):
    def listed(shape, classes, width, layers: tuple[int, ...] = (1,)):
        raise AssertionError("nothing is built")

    def counted(shape, classes, width, layers: int = 1):
        raise AssertionError("nothing is built")

    monkeypatch.setattr(registry, "_BUILDERS", {"listed": listed, "counted": counted})
    options = {"layers": [2, 3]}
    assert [len(expand(0, entry(model=model, options=options))) for model in ("listed", "counted")] == [1, 2]
    assert len(expand(0, entry(model="listed", options=[options, {"layers": [4]}]))) == 2


BAD = {
    "no value": (entry(model=[]), ["trials.0.model: found []", "at least one"]),
    "no option": (entry(options={"margin": []}), ["trials.0.options.margin: found []", "at least one"]),
    "a list in a list": (entry(options={"margin": [[0.1], 0.2]}), ["trials.0.options.margin: found [[0.1], 0.2]"]),
    "one value of several": (
        entry(options={"margin": [0.1, 2.0], "gain": [0.5, None]}),
        ["trials.0.options: margin", "(0, 1)", "2.0", "with options.margin 2.0, options.gain 0.5"],
    ),
    "one network of several": (entry(model=["cnn5", "cnn77"]), ["trials.0.model: found 'cnn77'", "with model cnn77"]),
    "an unknown option": (entry(options={"margins": [0.1, 0.2]}), ["trials.0.options.margins: unknown option"]),
    "a recipe that does not fit": (
        entry(train={"epochs": [4, 2]}),
        ["trials.0.train.decay_epochs: found [3]", "epochs = 2", "with train.epochs 2"],
    ),
    "the same twice": (
        entry(options={"margin": [0.1, 0.1]}),
        ["trials.0: the same trial as trials.0 with options.margin 0.1"],
    ),
    "zip of no lists": (entry(zip=["model", "method"]), ["trials.0.zip: found ['model', 'method']", "it has none"]),
    "zip of one": (entry(width=[1, 2], zip=["width"]), ["trials.0.zip: found ['width']", "two or more", "width"]),
    "zip of other lengths": (
        entry(width=[1, 2], model=["cnn5", "cnn7", "cnn11"], zip=["width", "model"]),
        ["trials.0.zip: found ['width', 'model']", "same length", "width has 2", "model has 3"],
    ),
    "too many": (
        entry(options={name: list(range(30)) for name in ("iterations", "margin", "gain")}),
        ["trials.0.options.iterations, options.margin, options.gain: found '27,000 trials'", "at most 10,000"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_grid_is_refused_by_its_key(tmp_path, case):
    bad, expected = BAD[case]
    with pytest.raises(ConfigError) as error:
        load_sweep(write(tmp_path, changed(("trials", [bad]))), "full", True)
    for part in ("study.yaml: ", *expected):
        assert part in str(error.value)
    assert len(str(error.value).splitlines()) <= 2, "a line a problem, not a line for each trial that has it"
