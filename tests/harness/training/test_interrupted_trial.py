"""A trial that was killed anywhere goes on to the very same end."""

import pytest
import torch
from safetensors.torch import load_file

from harness.data import load
from harness.storage import folder, names
from harness.training import run_trial
from harness.training.loop import train


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the project's catches it."""


@pytest.mark.parametrize("model", ["cnn5", "cerdeq"])
def test_a_trial_that_was_killed_goes_on_to_the_very_same_weights(tmp_path, tiny_trial, model):
    run_trial(tiny_trial(model), directory=tmp_path / "whole")

    def kill(row):
        if row[names.EPOCH] == 2:
            raise Killed

    with pytest.raises(Killed):
        run_trial(tiny_trial(model), directory=tmp_path / "broken", report=kill)
    rows = []
    run_trial(tiny_trial(model), directory=tmp_path / "broken", report=rows.append)
    assert [row[names.EPOCH] for row in rows] == [3]
    whole, broken = (load_file(tmp_path / name / folder.WEIGHTS) for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert [row[names.EPOCH] for row in folder.read_epochs(tmp_path / "broken")] == [0, 1, 2, 3]


def test_a_trial_killed_before_its_first_checkpoint_writes_the_untrained_network_once(tmp_path, tiny_trial):
    def kill(row):
        raise Killed

    with pytest.raises(Killed):
        run_trial(tiny_trial(), directory=tmp_path, report=kill)
    (written,) = folder.read_epochs(tmp_path)
    rows = []
    run_trial(tiny_trial(), directory=tmp_path, report=rows.append)
    assert [row[names.EPOCH] for row in rows] == [1, 2, 3]
    assert folder.read_epochs(tmp_path) == [written, *rows]


def test_a_checkpoint_without_rows_gives_no_row_of_an_untrained_network(tmp_path, tiny_trial):
    def kill(row):
        if row[names.EPOCH] == 2:
            raise Killed

    with pytest.raises(Killed):
        run_trial(tiny_trial(), directory=tmp_path, report=kill)
    (tmp_path / folder.EPOCHS).unlink()
    run_trial(tiny_trial(), directory=tmp_path)
    assert [row[names.EPOCH] for row in folder.read_epochs(tmp_path)] == [3]


@pytest.mark.parametrize("where", ["write_epoch", "checkpoint.save"])
def test_a_trial_killed_between_the_files_of_an_epoch_lacks_no_row(tiny_trial, tmp_path, monkeypatch, where):
    """Checkpoint and row of an epoch are two files; a process may die between them, and no row may be missing."""
    config = tiny_trial(width=0.05)

    def die(*_args, **_kwargs):
        raise Killed

    done = []

    def report(row):
        done.append(row)
        if row[names.EPOCH] == 1:
            monkeypatch.setattr(f"harness.training.loop.{where}", die)

    with pytest.raises(Killed):
        run_trial(config, tmp_path, report)
    monkeypatch.undo()
    result = run_trial(config, tmp_path)
    rows = folder.read_epochs(tmp_path)
    assert [row[names.EPOCH] for row in rows] == [0, 1, 2, 3]
    assert rows[:2] == done
    assert result.metrics[names.TRAIN_SECONDS] == pytest.approx(sum(row[names.TRAIN_EPOCH_SECONDS] for row in rows[1:]))
    unbroken = tmp_path.with_name(f"{tmp_path.name}-unbroken")
    assert run_trial(config, unbroken).metrics[names.CERTIFIED_ERROR] == result.metrics[names.CERTIFIED_ERROR]
    whole = folder.read_epochs(unbroken)
    assert rows[0] == whole[0]
    assert [row[names.TRAIN_LOSS] for row in rows[1:]] == [row[names.TRAIN_LOSS] for row in whole[1:]]


@pytest.mark.parametrize("method", ["mtl-ibp", "sabr"])
def test_a_broken_training_goes_on_as_if_it_had_not_been(tiny_trial, tmp_path, method):
    """Random starts and averages included."""
    config = tiny_trial(method=method, train={"ema_decay": 0.9})

    def kill(row):
        if row[names.EPOCH] == 2:
            raise Killed

    data = load(config.dataset)
    images, labels = data.train.images[:320], data.train.labels[:320]
    with pytest.raises(Killed):
        train(config, images, labels, tmp_path / "broken", torch.device("cpu"), kill)
    torch.manual_seed(99)
    resumed = train(config, images, labels, tmp_path / "broken", torch.device("cpu"), lambda row: None)
    whole = train(config, images, labels, tmp_path / "whole", torch.device("cpu"), lambda row: None)
    for (name, mine), other in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name
