"""Lists in an entry of `trials`: which trials they make, and which are refused, by file, key, found and allowed."""

from functools import partial

import pytest
from small_sweep import changed, trials_of, write

from baselines import registry
from harness.config.grid import expanded
from harness.config.settings import EvaluationSettings, TrainSettings
from harness.config.sweep_file import ConfigError, load_sweep
from harness.config.trial import trial_key


def entry(**keys):
    return {"model": "cerdeq", "method": "ibp", **keys}


def made(tmp_path, *entries):
    """The trials of these entries under one seed."""
    return trials_of(tmp_path, changed(("trials", list(entries)), ("seeds", [0])))


def test_an_option_s_list_is_as_many_entries(tmp_path):
    grid = made(tmp_path, entry(options={"margin": [0.1, 0.2]}))
    assert grid == made(tmp_path, entry(options={"margin": 0.1}), entry(options={"margin": 0.2}))


def test_lists_make_a_product_the_first_one_slowest(tmp_path):
    grid = made(tmp_path, entry(options={"margin": [0.1, 0.2], "gain": [None, 0.4]}, width=[0.5, 0.25]))
    told = [(trial.options["margin"], trial.options["gain"], trial.width) for trial in grid]
    assert told == [(m, g, w) for m in (0.1, 0.2) for g in (None, 0.4) for w in (0.5, 0.25)]


def test_every_key_of_an_entry_that_is_no_list_may_be_one(tmp_path):
    keys = {
        "model": ["cnn5", "cnn6"],
        "method": ["mtl-ibp", "sabr"],
        "method_options": {"attack_steps": [1, 2]},
        "width": [0.5, None],
        "train": {"clip_norm": [None, 5.0]},
    }
    grid = made(tmp_path, keys)
    assert len({trial_key(trial, "data") for trial in grid}) == len(grid) == 2**5


def test_lists_that_zip_names_go_together(tmp_path):
    pairs = entry(model=["cnn5", "cerdeq"], options=[{}, {"margin": 0.1}], zip=["model", "options"], width=[0.5, 1])
    told = [(trial.model, trial.options, trial.width) for trial in made(tmp_path, pairs)]
    assert told == [(m, o, w) for m, o in (("cnn5", {}), ("cerdeq", {"margin": 0.1})) for w in (0.5, 1.0)]


def test_mappings_may_be_listed_and_hold_lists(tmp_path):
    grid = made(tmp_path, entry(options=[{"recurrent": False}, {"margin": [0.1, 0.2]}]))
    assert [trial.options for trial in grid] == [{"recurrent": False}, {"margin": 0.1}, {"margin": 0.2}]


def test_what_is_a_list_by_its_type_stays_one(tmp_path):
    (trial,) = made(tmp_path, entry(train={"decay_epochs": [2, 3]}))
    assert trial.train.decay_epochs == (2, 3)
    grid = made(tmp_path, entry(train=[{"decay_epochs": [2, 3]}, {"decay_epochs": []}]))
    assert [trial.train.decay_epochs for trial in grid] == [(2, 3), ()]


def test_which_settings_are_lists_is_known():
    """A new one is not to be taken for a choice: grid.takes_list has to tell."""
    lists = {f.name for kind in (TrainSettings, EvaluationSettings) for f in vars(kind)["__dataclass_fields__"].values()
             if isinstance(f.default, tuple)}  # fmt: skip
    assert lists == {"decay_epochs", "stages"}
    (one,) = expanded(0, entry(train={"decay_epochs": [1, 2]}))
    assert one.content["train"] == {"decay_epochs": [1, 2]}
    assert len(expanded(0, entry(train={name: [1, 2] for name in ("eps", "clip_norm", "precision")}))) == 8


@pytest.fixture
def layered(monkeypatch):
    """Networks with an option `layers`: a list for one, a number for the other."""

    def listed(shape, classes, width, layers: tuple[int, ...] = (1,)):
        return registry.build("cnn5", "digits", width)[1:]

    def counted(shape, classes, width, layers: int = 1):
        return registry.build("cnn5", "digits", width)[1:]

    for name, builder in {"listed": listed, "counted": counted}.items():
        monkeypatch.setitem(registry._BUILDERS, name, partial(builder))


def test_an_option_that_is_a_list_stays_one_and_has_a_form_to_choose(layered):
    (one,) = expanded(0, {"model": "listed", "method": "ibp", "options": {"layers": [2, 3]}})
    assert one.content["options"] == {"layers": [2, 3]}
    two = expanded(0, {"model": "listed", "method": "ibp", "options": [{"layers": [2, 3]}, {"layers": [4]}]})
    assert [choice.content["options"]["layers"] for choice in two] == [[2, 3], [4]]
    assert len(expanded(0, {"model": "counted", "method": "ibp", "options": {"layers": [2, 3]}})) == 2


def test_an_option_that_is_a_list_for_one_network_alone_is_not_guessed(layered):
    with pytest.raises(ValueError, match=r"options\.layers: found \[2, 3\], allowed: entries apart"):
        expanded(0, {"model": ["listed", "counted"], "method": "ibp", "options": {"layers": [2, 3]}})


BAD = {
    "no value": (entry(model=[]), ["trials.0.model: found []", "at least one"]),
    "no option": (entry(options={"margin": []}), ["trials.0.options.margin: found []", "at least one"]),
    "a list in a list": (entry(options={"margin": [[0.1], 0.2]}), ["trials.0.options.margin: found [[0.1], 0.2]"]),
    "one value of several": (
        entry(options={"margin": [0.1, 2.0], "gain": [0.5, None]}),
        ["trials.0.options: margin", "(0, 1)", "2.0", "with options.margin 2.0, options.gain 0.5"],
    ),
    "one type of several": (entry(width=[1, "x"]), ["trials.0.width: found 'x'", "with width x", "number"]),
    "one network of several": (entry(model=["cnn5", "cnn77"]), ["trials.0.model: found 'cnn77'", "did you mean"]),
    "an unknown option": (entry(options={"margins": [0.1, 0.2]}), ["trials.0.options.margins: unknown option"]),
    "an unknown key": (entry(widths=[1, 2]), ["trials.0.widths: unknown key"]),
    "a recipe that does not fit": (
        entry(train={"epochs": [4, 2]}),
        ["trials.0.train.decay_epochs: found [3]", "epochs = 2", "with train.epochs 2"],
    ),
    "the same twice": (
        entry(options={"margin": [0.1, 0.1]}),
        ["trials.0: the same trial as trials.0 with options.margin 0.1"],
    ),
    "the default beside nothing": (entry(width=[None, 1]), ["trials.0: the same trial as trials.0 with width None"]),
    "zip of no list": (entry(zip=["model", "method"]), ["trials.0.zip: found ['model', 'method']", "it has none"]),
    "zip of one": (entry(width=[1, 2], zip=["width"]), ["trials.0.zip: found ['width']", "two or more", "width"]),
    "zip of a text": (entry(width=[1, 2], zip="width"), ["trials.0.zip: found 'width'", "two or more"]),
    "zip of other lengths": (
        entry(width=[1, 2], model=["cnn5", "cnn6", "cnn7"], zip=["width", "model"]),
        ["trials.0.zip: found ['width', 'model']", "same length", "width has 2", "model has 3"],
    ),
    "too many": (
        entry(options={name: list(range(30)) for name in ("iterations", "margin", "gain")}),
        ["trials.0.options.iterations, options.margin, options.gain", "at most 10,000"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_grid_is_told_by_key_and_nothing_is_written(refused, tmp_path, case):
    bad, expected = BAD[case]
    path = write(tmp_path, changed(("trials", [bad])))
    message = refused(path)
    for part in (str(path), *expected):
        assert part in message, message
    assert len(message.splitlines()) <= 2, "a problem is told once, not for each trial that has it"


def test_a_wrong_grid_of_a_profile_is_told_with_its_name(tmp_path):
    path = write(tmp_path, changed(("profiles", {"small": {"trials": [entry(), entry(width=[])]}})))
    with pytest.raises(ConfigError, match=r"trials\.1\.width: found \[\].*profile small"):
        load_sweep(path, "full", True)
