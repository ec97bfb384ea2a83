"""A sweep file that is changed, and run in the same directory: labels stay, and it is said what differs."""

import pytest
from small_sweep import BASE, changed, entry, load_sweep, write

from harness.command_line import main
from harness.config.changes import nearest_changes
from harness.data import load
from harness.storage import folder
from harness.tune.planned_sweep import PlannedSweep

LABELS = [f"{model} ibp seed {seed}" for model in ("cnn5", "cerdeq") for seed in (0, 1)]


@pytest.fixture
def plan(tmp_path):
    """A function of the content of a sweep file, and of patterns for --only, to the plan of its trials."""
    data = load("digits").summary() | {"title": "digits"}

    def make(content, *patterns):
        sweep = load_sweep(write(tmp_path, content), "full", True)
        return PlannedSweep.of(sweep, data, tmp_path / "results/study", list(patterns))

    return make


def finish(plan):
    """Write the folders of a plan's trials as if these had been run."""
    for trial in plan.trials:
        trial_dir = plan.trial_dirs[trial.key]
        folder.take_over(trial_dir, trial)
        folder.write_result(trial_dir, folder.TrialResult(trial.key, {"certified_error": 9.0}, {}, {}, []))


def test_a_label_stays_whatever_comes_beside_it(plan):
    first = plan(BASE)
    finish(first)
    assert [*first.labels.values()] == LABELS
    own = changed(("trials", [*BASE["trials"], entry(train={"kappa": 0.25})]))
    grown = plan(own)
    assert [*grown.labels.values()] == [*LABELS, *(f"cnn5 ibp train.kappa=0.25 seed {seed}" for seed in (0, 1))]
    assert [trial.key for trial in plan(own, "cnn5 ibp seed 0").trials] == [first.trials[0].key], "--only OLD LABEL"


def test_a_newer_trial_that_would_read_alike_gets_the_difference_and_keeps_it(plan):
    first = plan(BASE)
    finish(first)
    content = changed(("train.kappa", 0.25))
    second = plan(content)
    finish(second)
    marked = [label.replace(" seed", " train.kappa=0.25 seed") for label in LABELS]
    assert [*second.labels.values()] == [*plan(content).labels.values()] == marked
    assert [*plan(BASE).labels.values()] == LABELS and [*plan(BASE).row_names().values()].count("cnn5 ibp") == 2
    more_seeds = [*plan(content | {"seeds": [0, 1, 2]}).labels.values()]
    assert more_seeds[2] == "cnn5 ibp train.kappa=0.25 seed 2", "as the seeds that are there"


def test_what_differs_from_the_directory_is_said(plan):
    finish(plan(BASE))
    assert plan(BASE).changes == {}
    faster = plan(changed(("train.learning_rate", 0.01), ("trials.1.options", {"margin": 0.1})))
    texts = [faster.changes[trial.key] for trial in faster.trials]
    assert texts[0] == texts[1] == "train.learning_rate 0.01, was 0.0005"
    assert texts[2] == "options.margin 0.1, was not set; train.learning_rate 0.01, was 0.0005"
    assert set(plan(changed(("seeds", [0, 5]))).changes) == set(), "another seed is no change"
    other = plan(BASE)
    older = PlannedSweep.of(other.sweep, other.data | {"fingerprint": "f" * 16}, other.sweep_dir, [])
    assert set(older.changes.values()) == {"the data changed"}


def test_a_changed_plugin_is_named(plan):
    config = plan(BASE).trials[0].config
    old, new = (config.replace(plugins={"my_package.nets": digest * 16}) for digest in "01")
    assert nearest_changes(new, [old]) == ["plugin my_package.nets changed"]
    assert nearest_changes(new, [config]) == [f"plugins.my_package.nets {'1' * 16}, was not set"]


def test_a_dry_run_says_it_a_trial_a_line(plan, tmp_path, capsys):
    finish(plan(BASE))
    path = write(tmp_path, changed(("train.learning_rate", 0.01)))
    assert main("run", [str(path), "--dry-run", "--results-dir", str(tmp_path / "results")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("train.learning_rate 0.01, was 0.0005" in line and "not begun" in line for line in lines) >= 4
    assert any(line.startswith("not begun, for the directory has them otherwise: cnn5 ibp") for line in lines)
