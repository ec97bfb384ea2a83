"""The state of a network under an evaluation, by what lies in both folders."""

import dataclasses
import os

import pytest
import torch
from torch import nn

from harness.common import names
from harness.config.training import RECIPE_VERSION
from harness.settings import EVALUATION_VERSION
from harness.storage import files, folder, training_progress
from harness.storage.files import DamagedFileError
from harness.storage.records import Result, make_record, record_json
from harness.storage.state import State, read_state, read_state_or_raise, read_states
from harness.training import checkpoint


@pytest.fixture
def record(tiny_training):
    return make_record(tiny_training(), "data")


@pytest.fixture
def evaluation_dir(tmp_path, record, tiny_evaluation):
    """That of an evaluation of a network in `tmp_path` that has not begun."""
    folder.begin_network(tmp_path, record)
    return folder.begin_evaluation(tmp_path, tiny_evaluation())


def result_of(record, evaluation_dir):
    return Result(f"{record.key}/{evaluation_dir.name}", {}, {}, {}, [])


def test_an_evaluation_goes_through_its_states(tmp_path, record, evaluation_dir, tiny_evaluation):
    assert read_state(tmp_path / "none/evaluations/0").state is State.NOT_BEGUN and not (tmp_path / "none").exists()
    begun = read_state(evaluation_dir)
    assert begun.state is State.NOT_BEGUN and begun.written is None
    assert (begun.training, begun.evaluation.config) == (record, tiny_evaluation())
    training_progress.write_epoch(tmp_path, {names.EPOCH: 1})
    os.utime(tmp_path / folder.EPOCHS, (1000, 1000))
    expected = ((None, State.UNFINISHED, 0), (1001.0, State.UNFINISHED, 0), (999.0, State.RUNNING, 1))
    for run_began, state, epoch in expected:
        read, progress = read_state(evaluation_dir, run_began), f"epoch {epoch} of {record.config.epochs}"
        assert (read.state, read.description, read.epochs, read.written) == (state, progress, epoch, 1000)
    folder.write_failure(tmp_path, "ValueError: no")
    failed = read_state(evaluation_dir)
    assert (failed.state, failed.description) == (State.FAILED, "ValueError: no")
    assert failed.failure == folder.read_failure(tmp_path)
    trained = Result(record.key, {}, {}, {}, [])
    folder.write_trained(tmp_path, trained)
    assert read_state(evaluation_dir).text == "unfinished: trained" and read_state(evaluation_dir).trained == trained
    (evaluation_dir / "ranges/0").mkdir(parents=True)
    (evaluation_dir / "ranges/0/00000-00020.pt").touch()
    assert read_state(evaluation_dir).text == "unfinished: trained, 20 images are evaluated"
    folder.write_failure(evaluation_dir, "ValueError: not this")
    assert read_state(evaluation_dir).text == "failed: ValueError: not this"
    folder.write_result(evaluation_dir, result_of(record, evaluation_dir))
    finished = read_state(evaluation_dir)
    assert finished.state is State.FINISHED and finished.result == result_of(record, evaluation_dir)
    assert finished.failure is None


def test_each_evaluation_of_a_network_has_a_state_of_its_own(tmp_path, record, tiny_evaluation):
    network_dir = folder.network_dir(tmp_path, record.key)
    folder.begin_network(network_dir, record)
    (state,) = read_states(tmp_path).values()
    assert (state.state, state.training, state.evaluation) == (State.NOT_BEGUN, record, None)
    first, second = (folder.begin_evaluation(network_dir, tiny_evaluation(eps=eps)) for eps in ("1/8", "1/9"))
    folder.write_trained(network_dir, Result(record.key, {}, {}, {}, []))
    folder.write_result(first, result_of(record, first))
    folder.write_failure(second, "ValueError: no")
    assert {path: state.state for path, state in read_states(tmp_path).items()} == {
        first: State.FINISHED,
        second: State.FAILED,
    }


def test_epochs_that_are_trained_again_do_not_count(tmp_path, evaluation_dir):
    for epoch in range(1, 4):
        training_progress.write_epoch(tmp_path, {names.EPOCH: epoch})
    optimiser = torch.optim.SGD(nn.Linear(3, 2).parameters())
    checkpoint.save(tmp_path, 2, {"optimiser": optimiser})
    assert read_state(evaluation_dir).description == "epoch 2 of 3"
    assert read_state(evaluation_dir, 0.0).description == "epoch 3 of 3"
    folder.write_failure(tmp_path, "ValueError: no")
    assert read_state(evaluation_dir).epochs == 2
    (tmp_path / folder.SAVED_EPOCHS).write_text("two")
    found = read_state(evaluation_dir)
    assert (found.state, found.epochs) == (State.FAILED, 0), "not damaged: training reads the checkpoint, not the note"
    (tmp_path / folder.CHECKPOINT).write_bytes(b"PK" + bytes(100))
    assert checkpoint.restore(tmp_path, {"optimiser": optimiser}, torch.device("cpu")) == 0
    assert read_state(evaluation_dir).epochs == 0, "training has removed it and begins anew"


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_network_of_another_recipe_is_older_or_says_so_if_it_cannot_be_read(
    tmp_path, record, evaluation_dir, is_readable
):
    older = record_json(dataclasses.replace(record, recipe_version=RECIPE_VERSION - 1))
    older["config"]["train"] |= {} if is_readable else {"no such setting": 1}
    files.write_json(tmp_path / folder.TRAINING, older)
    folder.write_result(evaluation_dir, result_of(record, evaluation_dir))
    state = read_state(evaluation_dir)
    assert state.state is (State.OLDER if is_readable else State.DAMAGED)
    assert (state.training is not None) == (state.result is not None) == is_readable
    expected = f"older, of recipe version {RECIPE_VERSION - 1}, " if is_readable else "training.json cannot be read: "
    assert state.description.startswith(expected) and f"{RECIPE_VERSION - 1}, " in state.description


def test_an_evaluation_of_another_version_is_older(record, evaluation_dir):
    content = record_json(folder.read_evaluation(evaluation_dir))
    files.write_json(evaluation_dir / folder.EVALUATION, content | {"version": EVALUATION_VERSION - 1})
    folder.write_result(evaluation_dir, result_of(record, evaluation_dir))
    assert read_state(evaluation_dir).text.startswith(f"older, of evaluation version {EVALUATION_VERSION - 1}, ")


OF_NETWORK = [folder.TRAINING, folder.TRAINED, folder.STUDY, folder.FAILURE, folder.CHOSEN, folder.EPOCHS]
OF_EVALUATION = [folder.EVALUATION, folder.RESULT, folder.FAILURE]


@pytest.mark.parametrize(
    ("name", "is_of_network"), [*((name, True) for name in OF_NETWORK), *((name, False) for name in OF_EVALUATION)]
)
def test_a_damaged_file_is_named(tmp_path, evaluation_dir, name, is_of_network):
    path = (tmp_path if is_of_network else evaluation_dir) / name
    for content in ("{", "{}", "[]", '{"recipe_version": []}', None):
        path.unlink(missing_ok=True)
        if content is None:
            path.symlink_to("nowhere")
        else:
            path.write_text(content)
        if (content is None and name in (folder.TRAINING, folder.EVALUATION, folder.EPOCHS)) or (
            content == "{}" and name == folder.STUDY
        ):
            continue
        state = read_state(evaluation_dir)
        with pytest.raises(DamagedFileError, match=f"{name} cannot be read: "):
            read_state_or_raise(evaluation_dir)
        assert state.state is State.DAMAGED and f"{name} cannot be read: " in state.description


def test_results_of_another_network_or_evaluation_are_none(tmp_path, record, evaluation_dir):
    for key in ("0123456789abcdef/0123456789abcdef", record.key):
        folder.write_result(evaluation_dir, Result(key, {}, {}, {}, []))
        state = read_state(evaluation_dir)
        assert state.state is State.DAMAGED
        assert f"result.json belongs to another network or evaluation, {key}" in state.description
    folder.write_result(evaluation_dir, result_of(record, evaluation_dir))
    folder.write_trained(tmp_path, Result("0123456789abcdef", {}, {}, {}, []))
    assert "trained.json belongs to another network, 0123456789abcdef" in read_state(evaluation_dir).description
