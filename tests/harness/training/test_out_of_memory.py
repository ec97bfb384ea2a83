"""Where memory runs out, training goes on from its checkpoint, each part of a batch divided, and the result says so."""

import pytest
import torch
from steppers import Killed, kill, train_network

from cerdeq.errors import is_out_of_memory
from harness.common import names
from harness.storage import folder, training_record
from harness.training.step import Stepper


@pytest.fixture
def memory_for(monkeypatch):
    """A function to let steps run out of memory from a step on, unless a batch has so many parts."""
    step, steps = Stepper.__call__, [0]

    def limit(parts, after=0, error=torch.OutOfMemoryError):
        def take(stepper, *arguments):
            steps[0] += 1
            if steps[0] > after and stepper.config.train.accumulate < parts:
                raise error("CUDA out of memory")
            return step(stepper, *arguments)

        monkeypatch.setattr(Stepper, "__call__", take)

    return limit


def accumulated(network_dir):
    return [row.get(names.TRAIN_ACCUMULATE) for row in training_record.read_epochs(network_dir)]


def test_each_part_of_a_batch_is_divided_from_the_checkpoint_on(tiny_training, tmp_path, memory_for):
    """Five steps an epoch: memory runs out in the second one. The rows say that the first is not trained again."""
    config, rows = tiny_training(width=0.05, train={"compile": "never"}), []
    memory_for(2, after=7)
    result = train_network(config, tmp_path, rows.append, save_seconds=0)
    assert [row[names.EPOCH] for row in rows if names.EPOCH in row] == [0, 1, 2, 3]
    assert accumulated(tmp_path) == [None, None, 2, 2]
    assert result.warnings == ["accumulate 2 instead of 1 after running out of memory"]
    assert folder.read_training(tmp_path / folder.TRAINING).config == config
    assert folder.read_failure(tmp_path) is None


def test_a_restart_keeps_to_the_divided_batches(tiny_training, tmp_path, memory_for):
    config = tiny_training(width=0.05, train={"accumulate": 2, "compile": "never"})
    memory_for(4)
    with pytest.raises(Killed):
        train_network(config, tmp_path, kill, save_seconds=0)
    memory_for(1)
    result = train_network(config, tmp_path)
    assert accumulated(tmp_path) == [None, 4, 4, 4]
    assert result.warnings == ["accumulate 4 instead of 2 after running out of memory"]


@pytest.mark.parametrize("train", [{}, {"accumulate": 32}], ids=["still too large", "cannot be divided"])
def test_memory_that_runs_out_all_the_same_is_a_failure(tiny_training, tmp_path, memory_for, train):
    memory_for(1000)
    with pytest.raises(torch.OutOfMemoryError):
        train_network(tiny_training(width=0.05, train=train | {"compile": "never"}), tmp_path)
    message = "out of memory; on a GPU, raise resources.gpu: OutOfMemoryError: CUDA out of memory"
    assert folder.read_failure(tmp_path).error == message


def test_another_error_is_not_tried_again(tiny_training, tmp_path, memory_for):
    memory_for(2, error=lambda _: RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal"):
        train_network(tiny_training(width=0.05, train={"compile": "never"}), tmp_path)


def wrapped_error():
    """As if a capture, or the compiler, ends on an error of its own."""
    error = RuntimeError("capture failed")
    error.__context__ = torch.OutOfMemoryError()
    return error


@pytest.mark.parametrize(
    "error",
    [
        wrapped_error(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_ran_out_outside_the_allocator_counts(error):
    """CUDA and its libraries raise no OutOfMemoryError if a graph, a context or a workspace does not fit."""
    assert is_out_of_memory(error)
