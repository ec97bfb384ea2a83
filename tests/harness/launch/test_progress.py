"""What a person sees: the live table of a sweep, and bars or lines of one trial and of a certification."""

import io
import time

import pytest
from rich.console import Console

from harness.launch.progress import Bar, Counts, Lines, Progress
from harness.storage import folder, names

ROW = {names.EPOCH: 2, names.TRAIN_EPS: 0.01, names.TRAIN_LOSS: None, names.TRAIN_ACCUMULATE: 4}


def progress_of(trials, height=None):
    console = Console(file=io.StringIO(), width=200, height=height, force_terminal=True)
    return Progress(trials, {trial.key: trial.config.label for trial in trials}, console)


def rendered(progress):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(progress._render())
    return console.export_text()


@pytest.mark.parametrize("text", ["closing [/tag]", "C:\\[x]", "[0, 1]\nsecond line", ""])
def test_an_error_with_markup_in_it_is_printed_as_it_is(tiny_trial, capsys, text):
    trial = folder.make_trial(tiny_trial(), "data")
    with Progress([trial], {trial.key: "cnn5"}, Console(width=300)) as progress:
        progress.failed(trial.key, text)
    assert text.strip() in capsys.readouterr().out


def test_the_table_shows_every_state_and_the_time_left(tiny_trial):
    trials = [folder.make_trial(tiny_trial(seed=seed), "data") for seed in range(5)]
    keys = [trial.key for trial in trials]
    metrics = {names.STANDARD_ERROR: 10.0, names.ATTACK_ERROR: 20.0, names.CERTIFIED_ERROR: 30.0}
    row = {names.EPOCH: 1, names.TRAIN_EPOCH_SECONDS: 60.0, names.TRAIN_LOSS: None, names.TRAIN_EPS: 0.01}
    progress = progress_of(trials)
    progress.epoch(keys[0], row)
    progress.epoch(keys[1], {**row, names.EPOCH: 3})
    progress.evaluated(keys[1], 0, 500)
    progress.rows[keys[1]].pace.first = time.monotonic() - 300, 0
    progress.evaluated(keys[1], 100, 500)
    progress.epoch(keys[4], {names.EPOCH: 0, names.TRAIN_EPS: 0.0, names.in_training(names.BOUND_WIDTH): 5.0})
    progress.finished(keys[2], folder.TrialResult(keys[2], metrics, {}, {}, ["odd [/x]"]))
    text = rendered(progress)
    for part in ("1/3", "2.0 min", "20.0 min", "evaluating", "done", "30.00", "waiting", "0/3"):
        assert part in text
    for part in ("1 done, 3 running, 1 waiting", "best so far: ", " left; "):
        assert part in text


def test_of_many_trials_running_ones_are_shown_and_all_are_counted(tiny_trial):
    trials = [folder.make_trial(tiny_trial(seed=seed), "data") for seed in range(100)]
    progress = progress_of(trials, height=20)
    progress.epoch(trials[90].key, {names.EPOCH: 1})
    lines = rendered(progress).splitlines()
    assert len(lines) < 20
    assert trials[90].config.label in lines[2]
    assert "1 running, 99 waiting" in lines[-1]


@pytest.fixture
def now(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr("harness.launch.progress.time.monotonic", lambda: seconds[0])
    return seconds


def test_one_trial_prints_a_line_an_epoch_and_two_while_it_is_evaluated(capsys, now):
    with Lines() as lines:
        lines.epoch(ROW)
        for done in range(500, 3000, 500):
            lines.evaluated(done, 2500)
            now[0] += 60
    assert capsys.readouterr().out.splitlines() == [
        "epoch 2: train/eps 0.01, train/accumulate 4",
        "evaluating 2,000 images",
        "evaluated 1,000 of 2,500 images, 3.0 min left",
    ]


def test_bars_show_what_is_done_and_the_time_left(now):
    console = Console(file=io.StringIO(), force_terminal=True, width=150)
    with Bar(10, console) as bar:
        bar.epoch({**ROW, names.EPOCH: 1})
        now[0] += 60
        bar.epoch(ROW)
        bar.evaluated(0, 2500)
        now[0] += 30
        bar.evaluated(500, 2500)
        bar.bars.refresh()
    text = console.file.getvalue()
    for part in (
        "epochs",
        "2/10",
        "8.0 min left, eps 0.01, accumulate 4",
        "images evaluated",
        "500/2500",
        "2.0 min left",
    ):
        assert part in text, part


def test_a_certification_counts_verdicts_on_a_terminal_alone(now, capsys):
    console = Console(file=io.StringIO(), force_terminal=True, width=150)
    with Counts(100, console) as counts:
        now[0] += 60
        counts.add({names.CERTIFIED: 14, names.FALSIFIED: 3, names.MISCLASSIFIED: 1, names.TIMEOUT: 1, names.FAILED: 1})
        counts.bars.refresh()
    text = console.file.getvalue()
    assert "20/100" in text and "14 certified, 3 falsified, 2 undecided, 4.0 min left" in text
    with Counts(100, Console(file=(file := io.StringIO()))) as counts:
        counts.add({names.CERTIFIED: 100})
    assert file.getvalue() == "" and capsys.readouterr().out == ""
