"""The key `search`: what is refused, what it makes of entries, and that it leaves the file's networks alone."""

import pytest
from small_sweep import changed, load_sweep, refusal, trainings_of, write

SEARCH = {"spaces": {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}, "trials": 3}
WRONG = [
    ({"objectives": ["loss"]}, "search.objectives.0: found 'loss'", "certified_error"),
    ({"spaces": {}}, "search.spaces: found {}", "at least 1"),
    ({"train": {"epoch": 2}}, "search.train.epoch: unknown key", "epochs"),
    ({"train": {"learning_rate": 1e-3}}, "search.train: found ['learning_rate']", "not among `spaces`"),
    ({"evaluation": {"stages": ["crown"]}}, "search.evaluation.stages: found ['crown']", "'ibp'"),
    ({"evaluation": {"test_images": 50}}, "search.evaluation.test_images: found 50", "search.validation_images"),
    (
        {"train": {"epochs": 2, "decay_epochs": [1]}, "spaces": {"train.ramp_epochs": {"integer": [1, 3]}}},
        "search.spaces.train.ramp_epochs: train.ramp_epochs: found 3",
        "ramp",
    ),
]
SPACES = [
    ("train.l1", {"unform": [0, 1]}, "search.spaces.train.l1.unform: unknown key", "log_uniform"),
    ("train.l1", {"uniform": [1, 0]}, "search.spaces.train.l1.uniform: found [1.0, 0.0]", "smaller one first"),
    ("train.l1", {"log_uniform": [0, 1]}, "search.spaces.train.l1.log_uniform", "above 0"),
    ("train.l1", {"choice": [0]}, "search.spaces.train.l1.choice: found [0]", "two different"),
    ("epochs", {"integer": [1, 2]}, "search.spaces.epochs", "train, options"),
    ("method_options.alpha", {"uniform": [0, 1]}, "search.spaces.method_options.alpha", "a network or method of"),
    ("train.kappa", {"uniform": [0, 2]}, "search.spaces.train.kappa: train.kappa: found 2.0", "or equal to 1"),
    (
        "options.margin",
        {"uniform": [0.1, 0.5]},
        "search.spaces: found ['options.margin']",
        "a setting that cnn5 ibp uses",
    ),
]


def searching(*changes, **search):
    """The content of a sweep file with a search."""
    return changed(("search", SEARCH | search), *changes)


def searched(tmp_path, *changes, assignments=(), **search):
    """The entries that are searched."""
    return load_sweep(write(tmp_path, searching(*changes, **search)), "full", True, assignments).searched


@pytest.mark.parametrize(
    ("search", "problem", "allowed"),
    [*WRONG, *(({"spaces": {key: space}}, problem, allowed) for key, space, problem, allowed in SPACES)],
)
def test_a_wrong_search_is_refused_by_file_and_key(tmp_path, search, problem, allowed):
    message = refusal(tmp_path, searching(**search))
    assert f"study.yaml: {problem}" in message and allowed in message, message


def test_a_search_that_does_not_fit_the_sweep_is_refused(tmp_path):
    assert "validation_images: found 50, allowed: 0 beside search" in refusal(
        tmp_path, searching(("validation_images", 50))
    )


def test_a_space_holds_for_the_entries_that_use_it(tmp_path):
    spaces = SEARCH["spaces"] | {"options.margin": {"uniform": [0.1, 0.5]}}
    plain, cerdeq = searched(tmp_path, spaces=spaces)
    assert set(plain.spaces) == {"train.learning_rate"} and set(cerdeq.spaces) == set(spaces)
    assert cerdeq.written == {"train.learning_rate": 5e-4, "options.margin": 0.3}
    made = cerdeq.training({"train.learning_rate": 1e-3, "options.margin": 0.2})
    assert (made.train.learning_rate, made.options) == (1e-3, {"margin": 0.2})
    assert cerdeq.training(cerdeq.written) == cerdeq.base, "a default that is written out is the same training"


def test_an_entry_is_recognised_among_choices_that_write_it_in_another_way(tmp_path):
    spaces = {
        "train.clip_norm": {"choice": [1, 10, None]},
        "train.eps": {"choice": ["8/255", "1/16"]},
        "train.decay_epochs": {"choice": [[2], [3]]},
        "options.iterations": {"choice": [8, 10]},
        "options.gain": {"choice": [None, 0.5]},
    }
    cerdeq = searched(tmp_path, ("train.eps", "2/32"), spaces=spaces)[1]
    assert cerdeq.written == {
        "train.clip_norm": 10, "train.eps": "1/16", "train.decay_epochs": [3], "options.iterations": 10,
        "options.gain": 0.5,
    }  # fmt: skip
    assert cerdeq.training(cerdeq.written) == cerdeq.base
    spaces["train.clip_norm"] = {"choice": [1, None]}
    assert searched(tmp_path, ("train.eps", "2/32"), spaces=spaces)[1].written is None


@pytest.mark.parametrize(("ends", "written"), [([0.01, 0.1], 0.0625), ([0.07, 0.1], None)])
def test_a_radius_is_recognised_in_a_space_of_numbers(tmp_path, ends, written):
    cerdeq = searched(tmp_path, spaces={"train.eps": {"uniform": ends}})[1]
    assert cerdeq.written == (written and {"train.eps": written})
    if written:
        assert cerdeq.training(cerdeq.written) == cerdeq.base


def test_a_search_leaves_the_keys_of_what_is_written_alone(tmp_path):
    keys = [[one.key("data") for one in trainings_of(tmp_path, content)] for content in (changed(), searching())]
    assert keys[0] == keys[1]


def test_set_changes_candidates_too(tmp_path):
    for one in searched(tmp_path, assignments=["train.epochs=5", "search.trials=9"]):
        assert one.training({"train.learning_rate": 1e-3}).train.epochs == 5


def test_candidates_alone_have_the_changes_of_search(tmp_path):
    """Winners have the recipe and the evaluation of the file."""
    short = {"epochs": 2, "ramp_epochs": 1, "decay_epochs": [1]}
    study = load_sweep(
        write(tmp_path, searching(train=short, evaluation={"stages": ["ibp"], "attack_steps": 1})), "full", True
    )
    row, main = study.searched[0], study.evaluations[0]
    winner, candidate = (make({"train.learning_rate": 1e-3}) for make in (row.training, row.candidate))
    assert winner == row.base.replace(train=row.base.train.replace(learning_rate=1e-3), named=winner.named)
    changed = {"epochs": 2, "ramp_epochs": 1, "decay_epochs": (1,)}
    assert candidate.train == winner.train.replace(**changed) != winner.train
    evaluation = study.search.evaluation_of_candidates(main)
    assert evaluation == main.replace(stages=["ibp"], attack_steps=1, split="validation", test_images=None)
    assert evaluation.stages != main.stages
