"""A candidate ends at the rung where it is stopped; else it is the trial that it would have been."""

from dataclasses import replace

import pytest
from search_cases import searched_sweep

from harness.clock import Stopped
from harness.data import load
from harness.search.rungs import CANDIDATE, SEARCH, run_candidate, stop
from harness.storage import folder, names
from harness.storage.files import write_json, write_text
from harness.training import run_folder


@pytest.fixture
def trial_dir(tmp_path):
    sweep = searched_sweep(tmp_path)
    trial = folder.make_trial(replace(sweep.searched[0].base, validation_images=50), load("digits").fingerprint)
    trial_dir = folder.trial_dir(tmp_path, trial.key)
    write_json(tmp_path / SEARCH, {"settings": {"asha": {"min_epochs": 1, "factor": 2}}})
    write_json(trial_dir / CANDIDATE, {"entry": 0, "number": 0, "settings": {}, "stopped": False})
    folder.claim(trial_dir, trial)
    return trial_dir


def epochs(trial_dir):
    return [row[names.EPOCH] for row in folder.read_epochs(trial_dir)]


def test_it_reports_at_each_rung_after_a_kill_once_more_and_ends_as_the_same_trial_without(trial_dir, tmp_path):
    reports = []

    def report(row, killed=False):
        if names.RUNG in row:
            reports.append(row)
            assert epochs(trial_dir)[-1] == row[names.RUNG]
            if killed:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_candidate(trial_dir, lambda row: report(row, killed=True), None, lambda done, images: None)
    run_candidate(trial_dir, report, None, lambda done, images: None)
    assert [row[names.RUNG] for row in reports] == [1, 1, 2] and reports[0] == reports[1]
    alone = tmp_path / "alone/trials" / trial_dir.name
    folder.claim(alone, folder.read_trial(trial_dir / folder.TRIAL))
    run_folder(alone, lambda row: None, None)
    assert (trial_dir / folder.WEIGHTS).read_bytes() == (alone / folder.WEIGHTS).read_bytes()
    assert len(folder.read_verdicts(trial_dir, [names.INDEX])) == 50, "validation images"


def test_it_ends_where_it_is_stopped_and_stays_ended(trial_dir):
    for _ in range(2):
        run_candidate(trial_dir, lambda row: names.RUNG in row and stop(trial_dir), None, lambda done, images: None)
        assert epochs(trial_dir) == [0, 1] and folder.read_result(trial_dir) is None


def test_it_stops_when_the_search_is_asked_to(trial_dir):
    write_text(folder.stop_file(trial_dir), "Ctrl-C")
    reports = []
    with pytest.raises(Stopped):
        run_candidate(trial_dir, reports.append, None, lambda done, images: None)
    assert not [row for row in reports if names.RUNG in row]
