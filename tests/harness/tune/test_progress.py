"""What a person sees: bars of a sweep and of a certification; lines where there is no terminal."""

import io
import re

import pytest
from rich.console import Console

from harness.common import names
from harness.storage import folder, training_record
from harness.tune.progress import Bars, SweepProgress
from harness.tune.run_sweep import _SweepListener
from harness.tune.time_left import TimeLeft, wall_seconds
from harness.tune.workers import Item

ROW = {
    names.EPOCH: 2, names.TRAIN_EPS: 0.01, names.TRAIN_LOSS: None, names.TRAIN_ACCUMULATE: 4,
    names.TRAIN_EPOCH_SECONDS: 60.0, names.TRAIN_EXAMPLES_PER_SECOND: 1234.5,
}  # fmt: skip
ERRORS = {names.STANDARD_ERROR: 10.0, names.ATTACK_ERROR: 20.0, names.CERTIFIED_ERROR: 30.0}


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), width=150, force_terminal=True, color_system=None)


@pytest.fixture
def pipe():
    return Console(file=io.StringIO(), width=500)


def shown(bars):
    """The lines of all bars, as they are now."""
    console = Console(width=150, file=(file := io.StringIO()))
    console.print(bars.bars.get_renderable())
    return [" ".join(re.sub("[━╺╸]", "", line).split()) for line in file.getvalue().splitlines()]


def sweep_of(tiny_trial, console, models=("cnn5",) * 3):
    trials = [folder.make_trial(tiny_trial(model, seed=seed), "data") for seed, model in enumerate(models)]
    return SweepProgress(trials, console), [trial.key for trial in trials]


def test_a_sweep_has_a_bar_for_each_trial_that_runs_and_a_line_for_each_that_has_ended(tiny_trial, terminal):
    progress, (first, second, third) = sweep_of(tiny_trial, terminal)
    with progress:
        progress.begin(first)
        assert shown(progress) == ["all trials 0/3", "cnn5 ibp seed 0 0/3 starts a worker"]
        progress.report(first, {names.ACTIVITY: "compiles its steps"})
        assert shown(progress)[1].endswith("compiles its steps")
        progress.report(first, ROW)
        progress.report(second, {**ROW, names.EPOCH: 3})
        progress.report(second, {names.EVALUATED: 20, names.IMAGES: 60})
        all_trials, running, evaluated = shown(progress)
        assert all_trials == "all trials 0/3 about 3.0 min left", "the third alone: three epochs of a minute"
        assert running == "cnn5 ibp seed 0 2/3 eps 0.01, accumulate 4, 1,234 images/s"
        assert evaluated == "cnn5 ibp seed 1 3/3 evaluates image 20 of 60"
        progress.finished(second, folder.TrialResult(second, ERRORS, {}, {}, ["odd [/x]"]))
        progress.failed(third, "closing [/tag]")
        assert [line.split(" ")[2] for line in shown(progress)] == ["2/3", "seed"]
    text = terminal.file.getvalue()
    assert "done cnn5 ibp seed 1: standard error 10.00 %, attack error 20.00 %, certified error 30.00 % (1" in text
    assert "warning cnn5 ibp seed 1: odd [/x]" in text and "failed cnn5 ibp seed 2: closing [/tag]" in text
    assert "running:" not in text


def test_without_a_terminal_a_line_every_half_minute_says_what_runs(tiny_trial, pipe, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("harness.tune.progress.time.monotonic", lambda: now[0])
    progress, (first, second, _) = sweep_of(tiny_trial, pipe)
    with progress:
        progress.begin(first)
        progress.report(first, {**ROW, names.EPOCH: 0})
        progress.report(first, {**ROW, names.EPOCH: 1})
        progress.begin(second)
        for seconds in (10, 29, 31, 40, 61):
            now[0] = seconds
            progress.tick()
    *begun, at_31, at_61 = pipe.file.getvalue().splitlines()
    assert begun == [
        "cnn5 ibp seed 0: starts a worker",
        "cnn5 ibp seed 0: trains its first epoch",
    ]
    expected = "cnn5 ibp seed 0: epoch 1 of 3, eps 0.01, accumulate 4, 1,234 images/s; cnn5 ibp seed 1: epoch 0 of 3"
    assert at_31 == at_61 == f"running: {expected}, starts a worker (0 of 3 trials, about 4.0 min left)"


def test_what_training_gives_up_is_shown_at_the_first_epoch_and_once(tiny_trial, terminal, tmp_path):
    progress, (key, *_) = sweep_of(tiny_trial, terminal)
    item = Item(trial_dir := tmp_path / key, "", {})
    trial_dir.mkdir()
    training_record.add_training_warnings(trial_dir, ["compiled steps given up: no compiler"])
    logged = []
    listener = _SweepListener(progress, lambda *call: logged.append(call))
    listener.on_report(item, {**ROW, names.EPOCH: 1})
    assert "warning cnn5 ibp seed 0: compiled steps given up: no compiler" in terminal.file.getvalue()
    listener.on_report(item, ROW)
    progress.finished(key, folder.TrialResult(key, ERRORS, {}, {}, training_record.read_training_warnings(trial_dir)))
    assert terminal.file.getvalue().count("given up") == 1
    assert logged == [(trial_dir, True)] * 2


def test_the_time_left_of_a_bar_is_estimated_from_all_parts(monkeypatch):
    now = [0.0]
    with Bars(Console(file=io.StringIO())) as bars:
        monkeypatch.setattr(bars.bars, "get_time", lambda: now[0])
        for done in (1, 2, 4):
            bars.move("parts", done, 10)
            now[0] += 600
    assert shown(bars) == ["parts 4/10 0:40:00"]


def test_time_left_is_that_of_the_row_or_of_all_rows_where_it_has_none(tiny_trial):
    quick, slow, new = (folder.make_trial(tiny_trial(model), "data") for model in ("cnn5", "cnn7", "cerdeq"))
    times = TimeLeft()
    assert times.seconds(quick, 0) is None
    for trial, seconds in ((quick, 10.0), (slow, 30.0)):
        times.add_epoch(trial.config.identity, {names.TRAIN_EPOCH_SECONDS: seconds})
    assert (times.seconds(quick, 1), times.seconds(slow, 3), times.seconds(new, 0)) == (20.0, 0.0, 60.0)
    times.add_evaluation(quick.config.identity, {names.EVALUATION_SECONDS: 7.0})
    assert (times.seconds(quick, 3), times.seconds(new, 2)) == (7.0, 27.0)
    assert times.is_measured(quick) and not times.is_measured(slow)
    assert wall_seconds([60.0, 10.0, 10.0], 2) == 60.0 and wall_seconds([30.0, 30.0, 30.0], 2) == 45.0
