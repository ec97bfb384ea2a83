"""Proposals lie in their spaces, are new, and are the same for the same candidates, also after kills."""

from typing import get_args

import pytest
from optuna.trial import TrialState
from search_cases import SPACES, new_study, searched_sweep

from harness.sweep.search import Sampler
from harness.tune.search.results import importances
from harness.tune.search.studies import JOURNAL, candidates_of, propose


def batch_error(settings):
    return abs(settings["train.batch_size"] - 40)


def proposals(study, sweep, count, error=batch_error):
    """Propose candidates with made-up errors, and return the settings of all."""
    for _ in range(count):
        candidate = propose(study, sweep.search, 0, sweep.searched[0], lambda settings: True)
        study.tell(candidate.number, error(candidate.user_attrs["settings"]))
    return [candidate.user_attrs["settings"] for candidate in candidates_of(study)]


@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_proposals_lie_in_their_spaces_and_survive_kills(tmp_path, sampler):
    sweep = searched_sweep(tmp_path, sampler=sampler)
    proposed = proposals(new_study(tmp_path / "one", sweep), sweep, 14)
    assert proposals(new_study(tmp_path / "two", sweep), sweep, 8) == proposed[:8]
    with open(tmp_path / "two" / JOURNAL, "a") as journal:
        journal.write('{"op_code": 4, "work')  # killed while writing
    (tmp_path / "two" / f"{JOURNAL}.lock").symlink_to("nowhere")
    new_study(tmp_path / "two", sweep).ask()  # killed while proposing
    assert proposals(new_study(tmp_path / "two", sweep), sweep, 6) == proposed
    spaces = sweep.search.spaces
    for settings in proposed:
        assert settings.keys() == SPACES.keys()
        for key, value in settings.items():
            space = spaces[key]
            assert value in space.choice if space.choice else space.ends[0] <= value <= space.ends[1]
    assert proposed[0] == {"train.learning_rate": 5e-4, "train.batch_size": 64, "train.initialisation": "ibp"}
    other_seed = searched_sweep(tmp_path, sampler=sampler, seed=1)
    assert proposals(new_study(tmp_path / "three", other_seed), other_seed, 3)[1:] != proposed[1:3]


def test_nsga2_continues_its_generations(tmp_path):
    sweep = searched_sweep(tmp_path, sampler="nsga2")
    study = new_study(tmp_path / "search", sweep)
    proposals(study, sweep, 25)
    assert max(trial.system_attrs.get("NSGAIISampler:generation", 0) for trial in study.trials) == 2


def test_a_space_of_few_choices_ends_and_stays_ended(tmp_path):
    sweep = searched_sweep(tmp_path, spaces={"train.initialisation": {"choice": ["ibp", "default"]}})
    study = new_study(tmp_path / "search", sweep)

    def is_new(settings):
        return settings not in [candidate.user_attrs["settings"] for candidate in candidates_of(study)]

    while propose(study, sweep.search, 0, sweep.searched[0], is_new):
        pass
    values = [candidate.user_attrs["settings"]["train.initialisation"] for candidate in candidates_of(study)]
    assert values == ["ibp", "default"]
    count = len(study.trials)
    assert propose(study, sweep.search, 0, sweep.searched[0], is_new) is None and len(study.trials) == count


def test_the_setting_that_decides_is_the_most_important(tmp_path):
    sweep = searched_sweep(tmp_path, sampler="random")
    study = new_study(tmp_path / "search", sweep)
    proposals(study, sweep, 3)
    assert importances(study, 0) == {}, "too few"
    proposals(study, sweep, 9)
    shares = importances(study, 0)
    assert shares.keys() == SPACES.keys()
    assert max(shares, key=shares.get) == "train.batch_size"


@pytest.mark.parametrize(
    ("error", "others", "is_pruned"),
    [(50, [40], True), (50, [60, 70], False), (50, [40, 60, 70, 80, 90], False), (60, [40, 50, 70, 80, 90], True)],
)
def test_the_best_third_goes_on(tmp_path, error, others, is_pruned):
    sweep = searched_sweep(tmp_path, asha={"min_epochs": 2, "factor": 3}, objectives=["certified_error"])
    study = new_study(tmp_path / "search", sweep)
    for value in others:
        other = study.ask()
        other.report(value, 2)
        other.should_prune()
    trial = study.ask()
    trial.report(error, 2)
    assert trial.should_prune() is is_pruned
    study.tell(trial.number, state=TrialState.PRUNED)
