"""The live table, and lines in its place where nobody watches."""

import os
import time

import pytest
from rich.console import Console

from harness.launch.progress import Progress
from harness.storage import folder, names


@pytest.mark.parametrize("text", ["closing [/tag]", "[red]colour", "C:\\[x]", "[0, 1]\nsecond line", ""])
def test_whatever_an_error_says_is_printed_as_it_is(tiny_trial, capsys, text):
    made = folder.make_trial(tiny_trial(), "data")
    with Progress([made], {made.key: "cnn5"}, Console(width=300)) as progress:
        progress.failed(made.key, text)
    assert text.strip() in capsys.readouterr().out


def test_progress_on_a_terminal_shows_every_state(tiny_trial):
    made = [folder.make_trial(tiny_trial(seed=seed), "data") for seed in range(5)]
    metrics = {names.STANDARD_ERROR: 10.0, names.ATTACK_ERROR: 20.0, names.CERTIFIED_ERROR: 30.0}
    row = {names.EPOCH: 1, names.TRAIN_EPOCH_SECONDS: 60.0, names.TRAIN_LOSS: None, names.TRAIN_EPS: 0.01}
    initial = {names.EPOCH: 0, names.TRAIN_EPS: 0.0, names.in_training(names.BOUND_WIDTH): 5.0}
    console = Console(width=200, force_terminal=True, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    progress = Progress(made, {trial.key: trial.config.label for trial in made}, console)
    progress.epoch(made[0].key, row)
    progress.epoch(made[1].key, {**row, names.EPOCH: 3})
    progress.judged(made[1].key, 0, 500)
    progress.rows[made[1].key].pace.first = time.monotonic() - 300, 0
    progress.judged(made[1].key, 100, 500)
    progress.epoch(made[4].key, initial)
    progress.finished(made[2].key, folder.TrialResult(made[2].key, metrics, {}, {}, ["odd [/x]"]))
    console.print(progress._render())
    text = console.export_text()
    for part in (
        "1/3",
        "2.0 min",
        "20.0 min",
        "evaluating",
        "done",
        "30.00",
        "waiting",
        "0/3",
        "1 done, 3 running, 1 waiting",
        "best so far: ",
        " left; ",
    ):
        assert part in text
    console.file.close()


def test_of_many_trials_those_at_work_are_shown_and_all_are_counted(tiny_trial):
    made = [folder.make_trial(tiny_trial(seed=seed), "data") for seed in range(100)]
    console = Console(width=200, height=20, force_terminal=True, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    progress = Progress(made, {trial.key: trial.config.label for trial in made}, console)
    progress.epoch(made[90].key, {names.EPOCH: 1})
    console.print(progress._render())
    lines = console.export_text().splitlines()
    console.file.close()
    assert len(lines) < 20
    assert made[90].config.label in lines[2]
    assert "1 running, 99 waiting" in lines[-1]
