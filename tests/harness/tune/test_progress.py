"""What a person sees: bars of a sweep and of a certification; lines where there is no terminal."""

import io
import re

import pytest
from harness.tune.run_sweep import SweepListener
from rich.console import Console

from harness.common import names
from harness.storage import folder, training_record
from harness.tune.items import Item
from harness.tune.progress import Bars, Progress

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


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def three(tmp_path, tiny_trial):
    """Three trials of three epochs."""
    records = [folder.make_trial(tiny_trial(seed=seed), "data") for seed in range(3)]
    for record in records:
        folder.take_over(tmp_path / record.key, record)
    return [
        Item(tmp_path / each.key, f"cnn5 ibp seed {each.config.seed}", {"train": {"epochs": 3}}) for each in records
    ]


def sweep(console, logged=None):
    return SweepListener(console, 3, lambda *call: logged.append(call) if logged is not None else None, False)


def finish(item, *warnings):
    folder.write_result(item.directory, folder.TrialResult(item.directory.name, ERRORS, {}, {}, list(warnings)))


def shown(bars):
    """The lines of all bars, as they are now."""
    console = Console(width=150, file=(file := io.StringIO()))
    console.print(bars.bars.get_renderable())
    return [" ".join(re.sub("[━╺╸]", "", line).split()) for line in file.getvalue().splitlines()]


def test_a_sweep_has_a_bar_for_each_trial_that_runs_and_a_line_for_each_that_has_ended(three, terminal):
    first, second, third = three
    with sweep(terminal) as progress:
        progress.on_start(first)
        assert shown(progress) == ["0 of 3 trials 0% -:--:--", "cnn5 ibp seed 0 0% -:--:-- starts"]
        progress.on_report(first, {names.ACTIVITY: "compiles its steps"})
        assert shown(progress)[1].endswith("compiles its steps")
        progress.on_report(first, ROW)
        progress.on_report(second, {**ROW, names.EPOCH: 3})
        progress.on_report(second, {names.EVALUATED: 20, names.IMAGES: 60})
        all_trials, running, evaluated = shown(progress)
        assert all_trials.startswith("0 of 3 trials 56%")
        assert running.endswith("epoch 2 of 3, eps 0.01, accumulate 4, 1,234 images/s")
        assert evaluated.startswith("cnn5 ibp seed 1 100%") and evaluated.endswith("evaluates image 20 of 60")
        finish(second, "odd [/x]")
        progress.on_end(second, None)
        progress.on_end(third, "closing [/tag]")
        assert [line.split(" ")[0] for line in shown(progress)] == ["2", "cnn5"]
    text = terminal.file.getvalue()
    assert "done cnn5 ibp seed 1: standard error 10.00 %, attack error 20.00 %, certified error 30.00 % (1" in text
    assert "warning cnn5 ibp seed 1: odd [/x]" in text and "failed cnn5 ibp seed 2: closing [/tag]" in text
    assert "running:" not in text


def test_without_a_terminal_a_line_every_half_minute_says_what_runs_and_the_time_left(three, pipe, clock):
    first, second, _ = three
    with sweep(pipe) as progress:
        progress.bars.get_time = lambda: clock[0]
        progress.on_start(first)
        progress.on_report(first, {**ROW, names.EPOCH: 0})
        for epoch in (1, 2):
            progress.on_report(first, {**ROW, names.EPOCH: epoch})
            clock[0] += 10
        progress.on_start(second)
        for seconds in (29, 31, 40, 62):
            clock[0] = seconds
            progress.on_step()
    *begun, at_31, at_62 = pipe.file.getvalue().splitlines()
    assert begun == ["cnn5 ibp seed 0: starts", "cnn5 ibp seed 0: trains its first epoch"]
    expected = "cnn5 ibp seed 0: epoch 2 of 3, eps 0.01, accumulate 4, 1,234 images/s; cnn5 ibp seed 1: starts"
    assert at_31 == at_62 == f"running: {expected} (0 of 3 trials, about 1.2 min left)", "seven epochs of 10 seconds"
    progress.on_report(first, {names.EVALUATED: 1, names.IMAGES: 100})
    assert progress.summary() == "0 of 3 trials", "an evaluation may take seconds or hours"


def test_what_training_gives_up_is_shown_at_the_first_epoch_and_once(three, terminal):
    item, logged = three[0], []
    training_record.add_lines(item.directory / folder.TRAINING_WARNINGS, ["compiled steps given up: no compiler"])
    listener = sweep(terminal, logged)
    listener.on_report(item, {**ROW, names.EPOCH: 1})
    assert "warning cnn5 ibp seed 0: compiled steps given up: no compiler" in terminal.file.getvalue()
    listener.on_report(item, ROW)
    finish(item, *training_record.read_lines(item.directory / folder.TRAINING_WARNINGS))
    listener.on_end(item, None)
    assert terminal.file.getvalue().count("given up") == 1
    assert logged == [(item.directory, True)] * 2 + [(item.directory, False)]


def test_images_are_counted_by_ranges(tmp_path, terminal):
    with Progress(terminal, "images", 30) as progress:
        for first in (0, 10):
            item = Item(tmp_path, "cnn5 ibp seed 0", {}, range(first, first + 10))
            progress.on_start(item)
            progress.on_report(item, {names.ACTIVITY: f"evaluates images {first} to {first + 9}"})
        assert len(shown(progress)) == 3, "two ranges of one trial run at a time"
        progress.end(item)
        assert shown(progress)[0].startswith("10 of 30 images 33%")


def test_the_time_left_of_a_bar_is_estimated_from_all_parts(monkeypatch):
    now = [0.0]
    with Bars(Console(file=io.StringIO())) as bars:
        monkeypatch.setattr(bars.bars, "get_time", lambda: now[0])
        for done in (1, 2, 4):
            bars.move("all", "parts", done / 10)
            now[0] += 600
    assert shown(bars) == ["parts 40% 0:40:00"]
