"""Parts of a recheck: they cover every image once, and nothing is confirmed that one of them did not check."""

import math
import os
from collections import Counter
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import pytest

from harness.checker import processes
from harness.checker.evaluation import RecheckResult
from harness.common.errors import InputError

FIRST = RecheckResult(3, 5, ["image 1: wrong"], 50.0, 60.0, Counter({("ibp", "ibp"): 1}), files="a")
SECOND = RecheckResult(2, 5, [], 0.0, 10.0, Counter({("ibp", "ibp"): 2, ("bab", "linear"): 1}), files="a")


@pytest.mark.parametrize("count", [1, 2_499, 2_500, 2_501, 10_000])
def test_parts_cover_every_image_once(count):
    images = [image for first, stop in processes.divide(count) for image in range(first, stop)]
    assert images == list(range(count))


def test_what_cannot_be_read_is_one_part():
    assert processes.divide(None) == [(0, None)] and processes.divide(0) == [(0, 0)]


def test_the_result_of_all_parts_counts_their_images():
    joined = processes.join([FIRST, SECOND])
    assert (joined.images, joined.of, joined.problems) == (5, 5, ["image 1: wrong"]) and joined.is_complete
    assert (joined.recorded, joined.confirmed) == (pytest.approx(30), pytest.approx(40))
    assert joined.proofs == {("ibp", "ibp"): 3, ("bab", "linear"): 1}


@pytest.mark.parametrize("other", [RecheckResult(0, 5, ["not checked: memory"]), RecheckResult(0, 0, [])])
def test_nothing_counts_as_checked_if_a_part_was_not(other):
    joined = processes.join([SECOND, other])
    assert joined.images == 0 and math.isnan(joined.confirmed) and not joined.is_complete
    assert joined.problems == other.problems


def test_parts_of_different_files_are_not_confirmed():
    changed = RecheckResult(2, 5, [], 0.0, 10.0, files="b")
    assert processes.join([SECOND, changed]).problems == ["its files changed while they were checked"]
    assert processes.join([SECOND, SECOND]).is_confirmed


def test_a_process_that_dies_confirms_nothing_and_the_others_are_still_named(tmp_path, monkeypatch):
    class Pool:
        def submit(self, function, path, part, digest):
            future = Future()
            if path.name == "dies":
                future.set_exception(BrokenProcessPool())
            else:
                future.set_result((RecheckResult(2_000, 4_000, [], 1.0, 1.0), 1.0))
            return future

    @contextmanager
    def no_processes(*arguments):
        yield Pool()

    monkeypatch.setattr(processes, "_processes", no_processes)
    counts = {tmp_path / "dies": 3_000, tmp_path / "lives": 4_000}
    (dead, _), (alive, _) = processes.recheck_all(counts, None, None, [])
    assert dead.problems == ["not checked: a process died, such as for lack of memory"] and dead.images == 0
    assert alive.is_confirmed and alive.images == 4_000


def test_another_copy_of_the_checker_checks_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(processes._there, "begun", (None, []))
    result, _ = processes._recheck_there(tmp_path, (0, 5), "0123456789abcdef")
    assert "not checked: code: found" in result.problems[0] and "another copy of harness" in result.problems[0]


def test_data_that_cannot_be_loaded_are_tried_once(monkeypatch):
    tried = []

    def load(source, data_dir):
        tried.append(source)
        raise InputError("no such data")

    monkeypatch.setattr(processes.evaluation, "load_hashed", load)
    load_data = processes.make_loader("nowhere")
    for _ in range(2):
        with pytest.raises(InputError, match="no such data"):
            load_data("mnist")
    assert tried == ["mnist"]


@pytest.mark.slow
def test_the_environment_is_as_it_was_after_an_error(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with pytest.raises(KeyError), processes._processes(2, None, []):
        raise KeyError
    assert os.environ["OMP_NUM_THREADS"] == "3" and "PYTHONSAFEPATH" not in os.environ
