"""Lists in an entry of `trials`: which networks they make. Which lists are refused: test_refused_files.py."""

from small_sweep import changed, entry, trainings_of


def cerdeq(**keys):
    return entry(model="cerdeq", **keys)


def expanded(tmp_path, *entries):
    """The networks of these entries under one seed."""
    return trainings_of(tmp_path, changed(("trials", list(entries)), ("seeds", [0])))


def test_a_list_stands_for_as_many_entries(tmp_path):
    trials = expanded(tmp_path, cerdeq(options={"margin": [0.1, 0.2]}))
    assert trials == expanded(tmp_path, cerdeq(options={"margin": 0.1}), cerdeq(options={"margin": 0.2}))


def test_lists_make_a_product_the_first_one_slowest(tmp_path):
    trials = expanded(tmp_path, cerdeq(options={"margin": [0.1, 0.2], "gain": [None, 0.4]}, width=[0.5, 0.25]))
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
    assert len({trial.key("data") for trial in trials}) == len(trials) == 2**5


def test_lists_in_zip_advance_together(tmp_path):
    pairs = entry(model=["cnn5", "cerdeq"], width=[0.5, 1], options=[{}, {"margin": 0.1}], zip=["model", "options"])
    values = [(trial.model, trial.options, trial.width) for trial in expanded(tmp_path, pairs)]
    assert values == [(m, o, w) for m, o in (("cnn5", {}), ("cerdeq", {"margin": 0.1})) for w in (0.5, 1.0)]


def test_mappings_may_be_listed_and_hold_lists(tmp_path):
    trials = expanded(tmp_path, cerdeq(options=[{"recurrent": False}, {"margin": [0.1, 0.2]}]))
    assert [trial.options for trial in trials] == [{"recurrent": False}, {"margin": 0.1}, {"margin": 0.2}]
    trials = expanded(tmp_path, cerdeq(train=[{"decay_epochs": [2, 3]}, {"decay_epochs": []}]))
    assert [trial.train.decay_epochs for trial in trials] == [(2, 3), ()], "a list by its type stays one"
