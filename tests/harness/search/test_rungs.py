"""A candidate that is compared on its way ends where it is told to, and else is the trial that it would have been."""

from dataclasses import replace

import pytest
from search_cases import searched_sweep

from harness.clock import Stopped
from harness.data import load
from harness.search.candidates import Candidate, claim, search_of
from harness.search.rungs import SEARCH, read_record, run_candidate, write_rung
from harness.storage import folder, names
from harness.storage.files import write_json, write_text
from harness.training import run_folder


@pytest.fixture
def place(tmp_path):
    sweep = searched_sweep(tmp_path, asha={"min_epochs": 1, "factor": 2}, objectives=[names.CERTIFIED_ERROR])
    search, content = search_of(tmp_path / "study", sweep.search, sweep.searched, [0], load("digits").fingerprint)
    write_json(search.directory / SEARCH, content)
    config = replace(sweep.searched[0].base, validation_images=50)
    made = folder.make_trial(config, load("digits").fingerprint)
    return claim(search, Candidate(0, 0, {}, {}, []), [made]).places[0]


def epochs(place):
    return [row[names.EPOCH] for row in folder.read_epochs(place)]


def test_it_reports_at_each_rung_and_ends_as_the_same_trial_without(place, tmp_path):
    told = []

    def report(row):
        if names.RUNG in row:
            told.append(row)
            assert epochs(place)[-1] == row[names.RUNG]
            write_rung(place, row[names.RUNG], row[names.CERTIFIED_ERROR], stopped=False)

    run_candidate(place, report, None, lambda done, images: None)
    assert [row[names.RUNG] for row in told] == [1, 2]
    alone = tmp_path / "alone/trials" / place.name
    folder.claim(alone, folder.read_trial(place / folder.TRIAL))
    run_folder(alone, lambda row: None, None)
    assert (place / folder.WEIGHTS).read_bytes() == (alone / folder.WEIGHTS).read_bytes()
    assert len(folder.read_verdicts(place, [names.INDEX])) == 50, "validation images"


def test_it_ends_where_it_falls_behind_and_stays_ended(place):
    def report(row):
        if names.RUNG in row:
            write_rung(place, row[names.RUNG], row[names.CERTIFIED_ERROR], stopped=True)

    run_candidate(place, report, None, lambda done, images: None)
    assert epochs(place) == [0, 1]
    assert read_record(place)["stopped"] and list(read_record(place)["rungs"]) == ["1"]
    run_candidate(place, report, None, lambda done, images: None)
    assert epochs(place) == [0, 1] and folder.read_result(place) is None


def test_what_was_reported_and_not_written_down_is_reported_again(place):
    rungs = []

    def lost(row):
        if names.RUNG in row:
            rungs.append(row)
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_candidate(place, lost, None, lambda done, images: None)
    assert rungs[0] == rungs[1] and epochs(place) == [0, 1]


def test_it_stops_when_the_search_is_asked_to(place):
    write_text(folder.stop_file(place), "Ctrl-C")
    with pytest.raises(Stopped):
        run_candidate(place, lambda row: None, None, lambda done, images: None)
    assert read_record(place)["rungs"] == {}
