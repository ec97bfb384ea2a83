"""When a call stops, and when it keeps what is done."""

import pytest

from harness.clock import Clock, OutOfTime


@pytest.fixture
def now(monkeypatch):
    """The time, in a list, which the test may change."""
    time = [1000.0]
    monkeypatch.setattr("harness.clock.time.monotonic", lambda: time[0])
    return time


def test_a_thing_fits_where_half_as_long_again_as_the_last_one_is_left(now):
    clock = Clock(100)
    clock.lasted["epoch"] = 10
    for spent, fits in ((0, True), (85, True), (86, False), (200, False)):
        now[0] = 1000.0 + spent
        assert clock.fits("epoch") == fits


def test_the_first_thing_of_a_kind_wants_a_quarter_of_the_call(now):
    clock = Clock(100)
    clock.lasted["epoch"] = 1
    now[0] += 75
    clock.require("batch")
    now[0] += 1
    clock.require("epoch")
    with pytest.raises(OutOfTime):
        clock.require("batch")


def test_the_first_thing_of_a_call_always_fits(now):
    """Else a call whose minutes are too few would be repeated for ever."""
    clock = Clock(100)
    now[0] += 200
    assert clock.fits("epoch")
    clock.lasted["epoch"] = 0
    assert not clock.fits("epoch") and not clock.fits("batch")


def test_without_an_end_everything_fits(now):
    clock = Clock()
    now[0] += 1e9
    clock.lasted["epoch"] = 1e9
    assert clock.fits("epoch") and clock.fits("batch")


def test_what_is_done_is_kept_at_most_every_so_many_seconds(now):
    clock, due = Clock(keep_every=30), []
    for _ in range(9):
        now[0] += 10
        due.append(clock.due())
    assert due == [False, False, True] * 3


def test_nothing_fits_once_the_call_is_asked_to_stop(now):
    asked = []
    clock = Clock(asked=lambda: bool(asked))
    assert clock.fits("epoch")
    asked.append(True)
    assert not clock.fits("epoch")
    assert not Clock(asked=lambda: True).fits("epoch"), "the first thing of all neither"
