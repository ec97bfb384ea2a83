"""A candidate ends at the rung where it is stopped; otherwise it is the same trial as without a search."""

from dataclasses import replace

import pytest
from search_cases import searched_sweep

from harness.common import names
from harness.data import load
from harness.machine.clock import Stopped
from harness.storage import folder
from harness.storage.files import write_json, write_text
from harness.training import run_folder
from harness.tune.search.rungs import CANDIDATE, SEARCH, run_candidate, stop_candidate


@pytest.fixture
def trial_dir(tmp_path):
    sweep = searched_sweep(tmp_path)
    trial = folder.make_trial(replace(sweep.searched[0].base, validation_images=50), load("digits").fingerprint)
    trial_dir = folder.trial_dir(tmp_path, trial.key)
    write_json(tmp_path / SEARCH, {"settings": {"asha": {"min_epochs": 1, "factor": 2}}})
    write_json(trial_dir / CANDIDATE, {"stopped": False})
    folder.take_over(trial_dir, trial)
    return trial_dir


def run(trial_dir, report):
    run_candidate(trial_dir, report, None)


def epochs(trial_dir):
    return [row[names.EPOCH] for row in folder.read_epochs(trial_dir)]


def test_it_reports_each_rung_again_after_a_kill_and_ends_as_the_same_trial(trial_dir, tmp_path):
    reports = []

    def report(row):
        if names.RUNG in row:
            reports.append(row)
            assert epochs(trial_dir)[-1] == row[names.RUNG]
            if len(reports) == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(trial_dir, report)
    run(trial_dir, report)
    assert [row[names.RUNG] for row in reports] == [1, 1, 2] and reports[0] == reports[1]
    alone = tmp_path / "alone/trials" / trial_dir.name
    folder.take_over(alone, folder.read_trial(trial_dir / folder.TRIAL))
    run_folder(alone, lambda row: None, None)
    assert (trial_dir / folder.WEIGHTS).read_bytes() == (alone / folder.WEIGHTS).read_bytes()
    assert len(folder.read_verdicts(trial_dir, [names.INDEX])) == 50, "validation images"


def test_it_ends_where_it_is_stopped_and_stays_ended(trial_dir):
    for _ in range(2):
        run(trial_dir, lambda row: names.RUNG in row and stop_candidate(trial_dir))
        assert epochs(trial_dir) == [0, 1] and folder.read_result(trial_dir) is None


def test_it_stops_when_the_search_is_asked_to(trial_dir):
    write_text(folder.stop_file(trial_dir), "Ctrl-C")
    reports = []
    with pytest.raises(Stopped):
        run(trial_dir, reports.append)
    assert not [row for row in reports if names.RUNG in row]
