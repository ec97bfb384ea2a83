"""When a trial saves what is done, and when it stops."""

import pytest

from harness.clock import Clock, Stopped


def test_what_is_done_is_saved_at_most_every_so_many_seconds(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("harness.clock.time.monotonic", lambda: now[0])
    clock, due = Clock(keep_every=30), []
    for _ in range(9):
        now[0] += 10
        due.append(clock.due())
    assert due == [False, False, True] * 3


def test_a_trial_stops_once_it_is_asked_to():
    asked = []
    clock = Clock(asked=lambda: bool(asked))
    clock.check()
    asked.append(True)
    with pytest.raises(Stopped):
        clock.check()
