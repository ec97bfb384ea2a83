"""TF32 in the steps alone, since whatever is watched or judged has float32 products; oneDNN where it can be trusted."""

from contextlib import contextmanager

import pytest
import torch

from baselines import build
from harness.device import NoGpuError, best_device, memory_share, take_share, tf32, without_faulty_onednn
from harness.storage import names
from harness.training import loop, run_trial
from harness.training.step import Stepper


@pytest.fixture(autouse=True)
def _restored():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before[1:]


def on():
    return torch.get_float32_matmul_precision() != "highest", torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_is_off_after_the_steps_whatever_came_before(wanted):
    torch.backends.cudnn.allow_tf32 = True
    with pytest.raises(ValueError, match="a step"), tf32(torch.device("cuda"), wanted):
        assert on() == (wanted, wanted)
        raise ValueError("a step")
    assert on() == (False, False)


def test_a_cpu_is_left_as_it_is():
    before = on()
    with tf32(torch.device("cpu"), True):
        assert on() == before
    assert on() == before


def test_every_use_of_a_gpu_begins_without_tf32_and_without_kernels_chosen_by_timing(monkeypatch):
    """Certification and the benchmark, too, which train nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False
    assert best_device().type == "cuda"
    assert torch.backends.cudnn.deterministic
    assert on() == (False, False)


def test_a_reserved_gpu_that_torch_does_not_see_is_an_error():
    take_share(0)
    if not torch.cuda.is_available():
        with pytest.raises(NoGpuError, match=r"0.5 GPU is reserved for this process.*: .*docs/gpu.md"):
            take_share(0.5)


@pytest.mark.parametrize(("visible", "cards"), [(None, 0), ("", 2), ("-1", 2), ("0", 0)])
def test_a_cpu_is_used_where_there_is_no_gpu_or_none_is_wanted(monkeypatch, visible, cards):
    no_cuda(monkeypatch, visible, cards)
    assert best_device().type == "cpu"


@pytest.mark.parametrize(("visible", "cards"), [(None, 2), ("0", 1)])
def test_a_gpu_that_the_driver_lists_and_torch_does_not_see_is_an_error(monkeypatch, visible, cards):
    no_cuda(monkeypatch, visible, cards)
    with pytest.raises(NoGpuError, match=f'driver lists {cards} GPU.*docs/gpu.md.*CUDA_VISIBLE_DEVICES=""'):
        best_device()


def no_cuda(monkeypatch, visible, cards):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("harness.device._count_listed_cards", lambda: cards)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_a_process_leaves_room_for_contexts_beside_its_tensors():
    """Two halves of a card and their two contexts fit it."""
    card = 141 * 2**30
    assert memory_share(1, card) + 2**30 <= card
    assert 2 * (memory_share(0.5, card) + 2**30) <= card
    assert memory_share(0.1, 2**33) > 0


@pytest.mark.parametrize("precision", ["tf32", "float32", "bf16"])
def test_the_steps_alone_are_within(tiny_trial, tmp_path, monkeypatch, precision):
    state, steps, watched = [], [], []

    @contextmanager
    def recorded(device, wanted):
        state.append(wanted)
        yield
        state.pop()

    def seen(function, where):
        def call(*arguments):
            where.append(list(state))
            return function(*arguments)

        return call

    monkeypatch.setattr(loop, "tf32", recorded)
    monkeypatch.setattr(Stepper, "__call__", seen(Stepper.__call__, steps))
    for name in ("monitor_bounds", "monitor_untrained", "recompute_statistics"):
        monkeypatch.setattr(loop, name, seen(getattr(loop, name), watched))
    train = {"epochs": 2, "precision": precision, "recompute_statistics": True}
    monkeypatch.setattr("harness.training.trial.evaluate_shard", seen(None, watched))
    with pytest.raises(TypeError, match="NoneType"):
        run_trial(tiny_trial(width=0.05, train=train), tmp_path)
    assert steps == [[precision == "tf32"]] * 10
    assert watched == [[]] * 5, "untrained, two epochs, statistics, verdicts"
    assert names.TRAIN_LOSS in loop.read_epochs(tmp_path)[-1]


@pytest.mark.parametrize(
    ("name", "capability", "without"),
    [("resnet9", "AVX2", True), ("resnet9", "AVX512", False), ("cnn7", "AVX2", False)],
)
def test_onednn_is_left_out_where_it_would_write_past_a_gradient(name, capability, without, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    before = torch.backends.mkldnn.enabled
    with pytest.raises(ValueError, match="a step"), without_faulty_onednn(build(name, "digits", 0.1)):
        assert torch.backends.mkldnn.enabled == (before and not without)
        raise ValueError("a step")
    assert torch.backends.mkldnn.enabled == before


def test_a_step_differentiates_without_onednn_where_that_is_needed(tiny_trial, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    seen, backward = [], torch.Tensor.backward

    def watched(tensor, *arguments, **options):
        seen.append(torch.backends.mkldnn.enabled)
        return backward(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    monkeypatch.setattr("harness.training.trial.evaluate_shard", None)
    with pytest.raises(TypeError, match="NoneType"):
        run_trial(tiny_trial("resnet9", width=0.05, train={"epochs": 2}), tmp_path)
    assert seen and not any(seen)
