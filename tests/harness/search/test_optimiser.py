"""What is proposed: within spaces, new, and the same for the same candidates."""

import pytest
from search_cases import SPACES, finished, searched_sweep

from harness.config.search import SAMPLERS
from harness.search import optimiser


def proposals(sweep, count):
    """Settings of the first candidates, whose errors are those of their batches."""
    known = []
    for _ in range(count):
        candidate = optimiser.propose(sweep.search, 0, sweep.searched[0], known, lambda settings: True)
        known.append(finished(candidate, abs(candidate.settings["train.batch_size"] - 40)))
    return [candidate.settings for candidate in known]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_lie_in_their_spaces_and_depend_on_candidates_alone(tmp_path, sampler):
    sweep = searched_sweep(tmp_path, sampler=sampler)
    made = proposals(sweep, 14)
    assert proposals(sweep, 14) == made
    spaces = sweep.search.spaces
    for settings in made:
        for key, value in settings.items():
            space = spaces[key]
            assert value in space.choice if space.choice else space.ends[0] <= value <= space.ends[1]
    assert {frozenset(settings) for settings in made} == {frozenset(SPACES)}
    assert made[0] == {"train.learning_rate": 5e-4, "train.batch_size": 64, "train.initialisation": "ibp"}, "as written"
    assert proposals(searched_sweep(tmp_path, sampler=sampler, seed=1), 3)[1:] != made[1:3]


def test_samplers_go_on_from_what_generations_they_kept(tmp_path):
    sweep, known = searched_sweep(tmp_path, sampler="nsga2"), []
    for number in range(25):
        known.append(
            finished(optimiser.propose(sweep.search, 0, sweep.searched[0], known, lambda settings: True), number)
        )
    generations = [candidate.attrs.get("NSGAIISampler:generation") for candidate in known]
    assert max(generations[1:]) == 2


def test_a_space_of_few_choices_ends(tmp_path):
    sweep = searched_sweep(tmp_path, spaces={"train.initialisation": {"choice": ["ibp", "default"]}})
    known = []
    while candidate := optimiser.propose(
        sweep.search, 0, sweep.searched[0], known, lambda settings: settings not in [one.settings for one in known]
    ):
        known.append(finished(candidate, 1.0))
    assert [one.settings["train.initialisation"] for one in known] == ["ibp", "default"]


def test_the_setting_that_decides_is_the_most_important(tmp_path):
    sweep, known = searched_sweep(tmp_path, sampler="random"), []
    for _ in range(12):
        candidate = optimiser.propose(sweep.search, 0, sweep.searched[0], known, lambda settings: True)
        known.append(finished(candidate, float(candidate.settings["train.batch_size"])))
    found = optimiser.importances(sweep.search, sweep.search.spaces, known, 0)
    assert set(found) == set(SPACES)
    assert max(found, key=found.get) == "train.batch_size"
    assert optimiser.importances(sweep.search, sweep.search.spaces, known[:3], 0) == {}
