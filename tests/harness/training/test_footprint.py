"""The memory that training is said to take, beside what torch's allocator counts when it does."""

import pytest
import torch
from steppers import stepper_of, take_steps
from torch.profiler import ProfilerActivity, profile

from harness.memory import free_memory
from harness.methods import METHODS
from harness.training.footprint import training_memory

BATCH = 200
SIZE = {"width": 0.2, "train_images": BATCH, "train": {"batch_size": BATCH}}
CASES = [("cnn5", method, {}) for method in METHODS] + [
    ("cerdeq", "ibp", {}),
    ("cerdeq", "crown-ibp", {"ema_decay": 0.9}),
    ("resnet9", "ibp", {"accumulate": 4}),
    ("cnn7", "ibp", {"precision": "bf16"}),
]
each_case = pytest.mark.parametrize(("model", "method", "train"), CASES)


def trial_and_stepper(tiny_trial, model, method, train, device):
    config = tiny_trial(model, method=method, **{**SIZE, "train": {**SIZE["train"], **train}})
    stepper = stepper_of(config, device, averaged=config.train.ema_decay is not None)
    stepper.captured = False
    stepper.images, stepper.labels = stepper.images[:BATCH].clone(), stepper.labels[:BATCH].clone()
    take_steps(stepper, 1, BATCH)  # Adam has its moments then
    return config, stepper


def held(stepper):
    """Bytes of what lies there between steps."""
    tensors = [stepper.images, stepper.labels, *stepper.model.parameters(), *stepper.model.buffers()]
    tensors += [] if stepper.averaged is None else [*stepper.averaged.parameters(), *stepper.averaged.buffers()]
    tensors += [value for state in stepper.optimiser.state.values() for value in state.values()]
    return sum(tensor.nbytes for tensor in tensors)


@each_case
def test_it_is_what_a_step_allocates(tiny_trial, model, method, train):
    config, stepper = trial_and_stepper(tiny_trial, model, method, train, "cpu")
    stepper.optimiser.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        take_steps(stepper, 1, BATCH)
    now = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    assert 0.95 < training_memory(config, BATCH) / (held(stepper) + most) < 1.1


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@each_case
def test_it_is_about_what_a_gpu_allocates(tiny_trial, model, method, train):
    """Kernels need memory of their own, too; the workspace of matrix products, 32 MiB on an H100, is taken before."""
    free_memory()
    torch.ones(2, 2, device="cuda").mm(torch.ones(2, 2, device="cuda"))
    before = torch.cuda.memory_allocated()
    config, stepper = trial_and_stepper(tiny_trial, model, method, train, "cuda")
    torch.cuda.reset_peak_memory_stats()
    take_steps(stepper, 1, BATCH)
    assert 0.6 < training_memory(config, BATCH) / (torch.cuda.max_memory_allocated() - before) < 1.1


def test_of_unrolled_solves_that_grow_the_longest_counts(tiny_trial):
    options = {"gradient": "unrolled", "iterations": 20}
    found = [
        training_memory(tiny_trial("cerdeq", **SIZE, options=options | early), BATCH)
        for early in ({}, {"early_iterations": 2}, {"iterations": 2})
    ]
    assert found[0] == found[1] > 1.5 * found[2]


def test_it_grows_with_what_it_counts(tiny_trial):
    def memory(images=BATCH, **train):
        return training_memory(tiny_trial("cnn5", **{**SIZE, "train": {**SIZE["train"], **train}}), images)

    usual = memory()
    assert memory(images=2 * BATCH) == usual + BATCH * (64 + 8), "bytes of an image and its label"
    assert memory(ema_decay=0.9) > usual
    assert memory(batch_size=100) < 0.7 * usual
    assert memory(accumulate=2) < 0.7 * usual
