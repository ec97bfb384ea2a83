"""What a person sees of one trial."""

import io

import pytest
from rich.console import Console

from harness.launch.watched import Bar, Counts, Lines
from harness.storage import names

ROW = {names.EPOCH: 2, names.TRAIN_EPS: 0.01, names.TRAIN_LOSS: None, names.TRAIN_ACCUMULATE: 4}


@pytest.fixture
def now(monkeypatch):
    time = [0.0]
    monkeypatch.setattr("harness.launch.pace.time.monotonic", lambda: time[0])
    return time


def test_lines_of_epochs_and_two_of_judging(capsys, now):
    with Lines() as watched:
        watched.epoch(ROW)
        for done in range(500, 3000, 500):
            watched.judged(done, 2500)
            now[0] += 60
    assert capsys.readouterr().out.splitlines() == [
        "epoch 2: train/eps 0.01, train/accumulate 4",
        "judging 2,000 images",
        "judged 1,000 of 2,500 images, 3.0 min left",
    ]


def test_bars_show_what_is_done_and_the_time_left(now):
    console = Console(file=io.StringIO(), force_terminal=True, width=150)
    with Bar(10, console) as watched:
        watched.epoch({**ROW, names.EPOCH: 1})
        now[0] += 60
        watched.epoch(ROW)
        watched.judged(0, 2500)
        now[0] += 30
        watched.judged(500, 2500)
        watched.bars.refresh()
    shown = console.file.getvalue()
    for part in ("epochs", "2/10", "8.0 min left, eps 0.01, accumulate 4", "images judged", "500/2500", "2.0 min left"):
        assert part in shown, part


def test_counts_of_verdicts_and_the_time_left(now, capsys):
    console = Console(file=io.StringIO(), force_terminal=True, width=150)
    with Counts(100, console) as counts:
        now[0] += 60
        counts.add({names.CERTIFIED: 14, names.ATTACKED: 3, names.MISCLASSIFIED: 1, names.TIMEOUT: 1, names.FAILED: 1})
        counts.bars.refresh()
    shown = console.file.getvalue()
    assert "20/100" in shown and "14 certified, 3 attacked, 2 open, 4.0 min left" in shown
    silent = Console(file=io.StringIO())
    with Counts(100, silent) as counts:
        counts.add({names.CERTIFIED: 100})
    assert silent.file.getvalue() == "" and capsys.readouterr().out == ""
