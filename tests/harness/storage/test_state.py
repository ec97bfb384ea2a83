"""The state of a trial and of a certification, by what lies in its folder."""

import dataclasses
import os

import pytest
import torch
from torch import nn

from harness.common import names
from harness.config.training import RECIPE_VERSION
from harness.storage import certification, files, folder, training_record
from harness.storage.files import DamagedFileError
from harness.storage.folder import TrialResult
from harness.storage.state import State, read_state, read_state_or_raise
from harness.training import checkpoint


@pytest.fixture
def trial(tiny_trial):
    return folder.make_trial(tiny_trial(), "data")


def test_a_trial_goes_through_its_states(tmp_path, trial):
    assert read_state(tmp_path / "none").state is State.NOT_BEGUN and not (tmp_path / "none").exists()
    folder.take_over(tmp_path, trial)
    begun = read_state(tmp_path)
    assert begun.state is State.NOT_BEGUN and begun.trial == trial and begun.written is None
    training_record.write_epoch(tmp_path, {names.EPOCH: 1})
    os.utime(tmp_path / folder.EPOCHS, (1000, 1000))
    expected = ((None, State.UNFINISHED, 0), (1001.0, State.UNFINISHED, 0), (999.0, State.RUNNING, 1))
    for run_began, state, epoch in expected:
        read, progress = read_state(tmp_path, run_began), f"epoch {epoch} of {trial.config.epochs}"
        assert (read.state, read.description, read.epochs, read.written) == (state, progress, epoch, 1000)
    (tmp_path / "ranges/0").mkdir(parents=True)
    progress = f"epoch 0 of {trial.config.epochs}"
    assert read_state(tmp_path).description == f"{progress}, being evaluated"
    folder.write_failure(tmp_path, "ValueError: no")
    failed = read_state(tmp_path)
    assert (failed.state, failed.description) == (State.FAILED, "ValueError: no")
    assert failed.failure == folder.read_failure(tmp_path)
    result = TrialResult(trial.key, {}, {}, {}, [])
    folder.write_result(tmp_path, result)
    finished = read_state(tmp_path)
    assert finished.state is State.FINISHED and finished.result == result and finished.failure is None


def test_epochs_that_are_trained_again_do_not_count(tmp_path, trial):
    folder.take_over(tmp_path, trial)
    for epoch in range(1, 4):
        training_record.write_epoch(tmp_path, {names.EPOCH: epoch})
    optimiser = torch.optim.SGD(nn.Linear(3, 2).parameters())
    checkpoint.save(tmp_path, 2, {"optimiser": optimiser})
    assert (read_state(tmp_path).description, read_state(tmp_path, 0.0).description) == ("epoch 2 of 3", "epoch 3 of 3")
    folder.write_failure(tmp_path, "ValueError: no")
    assert read_state(tmp_path).epochs == 2
    (tmp_path / folder.SAVED_EPOCHS).write_text("two")
    found = read_state(tmp_path)
    assert (found.state, found.epochs) == (State.FAILED, 0), "not damaged: training reads the checkpoint, not the note"
    (tmp_path / folder.CHECKPOINT).write_bytes(b"PK" + bytes(100))
    assert checkpoint.restore(tmp_path, {"optimiser": optimiser}, torch.device("cpu")) == 0
    assert read_state(tmp_path).epochs == 0, "training has removed it and begins anew"


def test_a_certification_has_the_same_states(tmp_path, trial):
    folder.take_over(tmp_path, trial)
    directory = tmp_path / certification.FOLDER / "ibp"
    certification.begin_certification(directory, trial, "weights")
    assert read_state(directory).state is State.NOT_BEGUN
    (directory / "ranges/0").mkdir(parents=True)
    (directory / "ranges/0/00000-00020.pt").touch()
    certification_state = read_state(directory)
    assert certification_state.state is State.UNFINISHED
    assert certification_state.description == "20 images of ibp are evaluated"
    folder.write_result(directory, TrialResult(trial.key, {}, {}, {}, []))
    assert read_state(directory).state is State.FINISHED


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_trial_of_another_recipe_is_older_or_says_so_if_it_cannot_be_read(tmp_path, trial, is_readable):
    older = folder.trial_json(dataclasses.replace(trial, recipe_version=RECIPE_VERSION - 1))
    older["config"]["train"] |= {} if is_readable else {"no such setting": 1}
    files.write_json(tmp_path / folder.TRIAL, older)
    folder.write_result(tmp_path, TrialResult(trial.key, {}, {}, {}, []))
    trial_state = read_state(tmp_path)
    assert trial_state.state is (State.OLDER if is_readable else State.DAMAGED)
    assert (trial_state.trial is not None) == (trial_state.result is not None) == is_readable
    expected = f"older, of recipe version {RECIPE_VERSION - 1}, " if is_readable else "trial.json cannot be read: "
    assert trial_state.description.startswith(expected) and f"{RECIPE_VERSION - 1}, " in trial_state.description


@pytest.mark.parametrize("name", [folder.TRIAL, folder.RESULT, folder.FAILURE, folder.CHOSEN, folder.EPOCHS])
def test_a_damaged_file_is_named(tmp_path, trial, name):
    folder.take_over(tmp_path, trial)
    for content in ("{", "{}", "[]", '{"recipe_version": []}', None):
        (tmp_path / folder.EPOCHS).write_text("")
        (tmp_path / name).unlink(missing_ok=True)
        if content is None and name in (folder.TRIAL, folder.EPOCHS):
            continue
        if content is None:
            (tmp_path / name).symlink_to("nowhere")
        else:
            (tmp_path / name).write_text(content)
        trial_state = read_state(tmp_path)
        with pytest.raises(DamagedFileError, match=f"{name} cannot be read: "):
            read_state_or_raise(tmp_path)
        assert trial_state.state is State.DAMAGED and trial_state.description.startswith(f"{name} cannot be read: ")


def test_a_result_of_another_trial_is_none(tmp_path, trial):
    folder.take_over(tmp_path, trial)
    folder.write_result(tmp_path, TrialResult("0123456789abcdef", {}, {}, {}, []))
    trial_state = read_state(tmp_path)
    assert trial_state.state is State.DAMAGED
    assert "belongs to another trial, 0123456789abcdef" in trial_state.description
