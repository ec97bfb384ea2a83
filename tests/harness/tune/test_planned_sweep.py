"""Labels follow from a trial and its entry alone, whatever lies in the directory; --only selects by them."""

import pytest
from small_sweep import BASE, changed, entry, load_sweep, write

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


def labels(plan):
    return [trial.config.label for trial in plan.trials]


def test_a_label_stays_whatever_lies_beside_it(plan):
    first = plan(BASE)
    for trial in first.trials:
        folder.take_over(first.trial_dirs[trial.key], trial)
    assert labels(first) == labels(plan(changed(("train.kappa", 0.25)))) == LABELS
    grown = plan(changed(("trials", [*BASE["trials"], entry(train={"kappa": 0.25})])))
    assert labels(grown) == [*LABELS, *(f"cnn5 ibp train.kappa=0.25 seed {seed}" for seed in (0, 1))]


def test_only_selects_by_label_key_and_recipe(plan):
    content = changed(("trials", [*BASE["trials"], entry(train={"kappa": 0.25})]))
    trials = plan(content).trials
    assert plan(content, "cnn5 ibp seed 0").trials == [trials[0]]
    assert plan(content, trials[3].key, trials[1].key).trials == [trials[1], trials[3]]
    assert labels(plan(content, "*train.kappa=0 *")) == LABELS
