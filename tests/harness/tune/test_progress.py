"""What a person sees: bars of a sweep, of one trial and of a certification; lines where there is no terminal."""

import io
import re

import pytest
from rich.console import Console

from harness.common import names
from harness.storage import folder
from harness.tune.progress import Bars, Callbacks, SweepProgress
from harness.tune.stopping import Stopping

ROW = {names.EPOCH: 2, names.TRAIN_EPS: 0.01, names.TRAIN_LOSS: None, names.TRAIN_ACCUMULATE: 4}


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), width=150, force_terminal=True, color_system=None)


def shown(bars):
    """The lines of all bars, as they are now."""
    console = Console(width=150, file=(file := io.StringIO()))
    console.print(bars.bars.get_renderable())
    return [" ".join(re.sub("[━╺╸]", "", line).split()) for line in file.getvalue().splitlines()]


def sweep_of(tiny_trial, console):
    trials = [folder.make_trial(tiny_trial(seed=seed), "data") for seed in range(3)]
    labels = {trial.key: f"trial {number} groups=[2]" for number, trial in enumerate(trials)}
    return SweepProgress(trials, labels, console), list(labels)


def test_a_sweep_has_a_bar_for_each_trial_that_runs_and_a_line_for_each_that_has_ended(tiny_trial, terminal):
    progress, (first, second, third) = sweep_of(tiny_trial, terminal)
    with progress:
        progress.report(first, {**ROW, names.EPOCH: 1})
        progress.report(first, ROW)
        progress.report(second, {**ROW, names.EPOCH: 3})
        progress.report(second, {names.EVALUATED: 20, names.IMAGES: 60})
        all_trials, running, evaluated = shown(progress)
        assert all_trials.startswith("all trials 5/12 ") and all_trials.endswith(" 0 of 3 trials have ended")
        assert running.startswith("trial 0 groups=[2] 2/3 0:00:0") and running.endswith(" eps 0.01, accumulate 4")
        assert evaluated.startswith("trial 1 groups=[2]: images 20/60 ")
        errors = {names.STANDARD_ERROR: 10.0, names.ATTACK_ERROR: 20.0, names.CERTIFIED_ERROR: 30.0}
        progress.finished(second, folder.TrialResult(second, errors, {}, {}, ["odd [/x]"]))
        progress.failed(third, "closing [/tag]")
        progress.stopped(first)
        assert len(shown(progress)) == 1 and shown(progress)[0].startswith("all trials 10/12 ")
    text = terminal.file.getvalue()
    assert (
        "done trial 1 groups=[2]: standard error 10.00 %, attack error 20.00 %, certified error 30.00 % (1 of 3" in text
    )
    assert "warning trial 1 groups=[2]: odd [/x]" in text and "failed trial 2 groups=[2]: closing [/tag]" in text


def test_what_training_gives_up_is_shown_at_the_first_epoch_and_once(tiny_trial, terminal, tmp_path):
    progress, (key, *_) = sweep_of(tiny_trial, terminal)
    (trial_dir := tmp_path / key).mkdir()
    folder.add_training_warnings(trial_dir, ["compiled steps given up: no compiler"])
    callbacks = Callbacks(progress, Stopping(None, progress.print_line))
    callbacks.on_report(trial_dir, {**ROW, names.EPOCH: 1})
    assert "warning trial 0 groups=[2]: compiled steps given up: no compiler" in terminal.file.getvalue()
    callbacks.on_report(trial_dir, ROW)
    errors = dict.fromkeys((names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR), 10.0)
    progress.finished(key, folder.TrialResult(key, errors, {}, {}, folder.read_training_warnings(trial_dir)))
    assert terminal.file.getvalue().count("given up") == 1


def test_the_time_left_is_estimated_from_all_parts(monkeypatch):
    now = [0.0]
    with Bars(Console(file=io.StringIO())) as bars:
        monkeypatch.setattr(bars.bars, "get_time", lambda: now[0])
        for done in (1, 2, 4):
            bars.move("parts", done, 10)
            now[0] += 600
    assert shown(bars) == ["parts 4/10 0:40:00"]


def test_the_time_left_is_unknown_until_a_trial_of_each_row_has_finished(tiny_trial, terminal):
    models = ("cnn5", "cnn5", "cerdeq", "cerdeq")
    trials = [folder.make_trial(tiny_trial(model, seed=seed), "data") for seed, model in enumerate(models)]
    keys = [trial.key for trial in trials]
    errors = {names.STANDARD_ERROR: 10.0, names.ATTACK_ERROR: 20.0, names.CERTIFIED_ERROR: 30.0}
    with SweepProgress(trials, dict(zip(keys, "abcd", strict=True)), terminal) as progress:
        for key in (keys[0], keys[2]):
            progress.report(key, {**ROW, names.EPOCH: 3})
            all_trials = shown(progress)[0]
            progress.finished(key, folder.TrialResult(key, errors, {}, {}, []))
            assert " unknown " in all_trials
        assert " unknown " not in shown(progress)[0]
    lines = [line for line in terminal.file.getvalue().splitlines() if "done " in line]
    assert "(1 of 4 trials, time left unknown: 1 row without a finished trial)" in lines[0]
    assert "unknown" not in lines[1]
