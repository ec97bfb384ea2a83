"""TF32 in steps alone, since monitoring and evaluation need float32 products; oneDNN where it can be trusted; GPUs."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from steppers import stepper_of, take_steps

from harness.common.errors import InputError
from harness.data import load
from harness.machine.device import NoGpuError, best_device, limit_gpu_memory, tf32
from harness.training import decisions, loop
from harness.training.step import Stepper


@pytest.fixture(autouse=True)
def _restored():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32 = True  # torch's default; it cannot be read if a test set it for convolutions alone
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, before[1]


def is_on():
    return torch.get_float32_matmul_precision() != "highest", torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("enabled", [True, False])
def test_tf32_is_off_after_the_steps(enabled):
    torch.backends.cudnn.allow_tf32 = True
    with pytest.raises(ValueError, match="a step"), tf32(torch.device("cuda"), enabled):
        assert is_on() == (enabled, enabled)
        raise ValueError("a step")
    assert is_on() == (False, False)


@pytest.mark.parametrize(
    ("name", "value", "is_refused"),
    [
        ("ONEDNN_DEFAULT_FPMATH_MODE", "bf16", True),
        ("DNNL_DEFAULT_FPMATH_MODE", "ANY", True),
        ("CUBLAS_EMULATE_DOUBLE_PRECISION", "1", True),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "strict", False),
        ("CUBLAS_EMULATE_SINGLE_PRECISION", "0", False),
    ],
)
def test_an_environment_that_reduces_precision_is_refused(monkeypatch, name, value, is_refused):
    """Before anything is trained: bounds would not hold."""
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}={value} .*: unset it") if is_refused else nullcontext():
        best_device()


def test_every_use_of_a_gpu_begins_without_tf32_and_without_kernels_chosen_by_timing(monkeypatch):
    """Certification and the benchmark, too, which train nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False
    assert best_device().type == "cuda"
    assert torch.backends.cudnn.deterministic
    assert is_on() == (False, False)


def test_a_reserved_gpu_that_torch_does_not_see_is_an_error():
    limit_gpu_memory(0)
    if not torch.cuda.is_available():
        with pytest.raises(NoGpuError, match=r"0.5 GPU is reserved for this process.*: .*docs/gpu.md"):
            limit_gpu_memory(0.5)


@pytest.mark.parametrize(
    ("visible", "cards", "is_cpu"), [(None, 0, True), ("", 2, True), ("0", 0, True), (None, 2, False), ("0", 1, False)]
)
def test_a_cpu_is_used_unless_the_driver_lists_gpus_that_torch_cannot_use(monkeypatch, visible, cards, is_cpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("harness.machine.device._count_listed_cards", lambda: cards)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if is_cpu:
        assert best_device().type == "cpu"
    else:
        with pytest.raises(NoGpuError, match=f'driver lists {cards} GPU.*docs/gpu.md.*CUDA_VISIBLE_DEVICES=""'):
            best_device()


@pytest.mark.parametrize("precision", ["tf32", "float32"])
def test_only_steps_use_tf32(tiny_training, tmp_path, monkeypatch, precision):
    enabled, steps, others = [], [], []

    @contextmanager
    def recorded(device, value):
        enabled.append(value)
        yield
        enabled.pop()

    def recording(function, calls):
        def call(*arguments):
            calls.append(list(enabled))
            return function(*arguments)

        return call

    monkeypatch.setattr(loop, "tf32", recorded)
    monkeypatch.setattr(decisions, "_precision_on", lambda device, precision: precision)  # as on a GPU
    monkeypatch.setattr(Stepper, "__call__", recording(Stepper.__call__, steps))
    for name in ("monitor_bounds", "monitor_untrained", "recompute_statistics"):
        monkeypatch.setattr(loop, name, recording(getattr(loop, name), others))
    train = {"epochs": 2, "precision": precision, "recompute_statistics": True, "compile": "never"}
    data, config = load("digits").train, tiny_training(width=0.05, train=train)
    loop.train(config, data.images[:320], data.labels[:320], tmp_path, lambda row: None)
    assert steps == [[precision == "tf32"]] * 10
    assert others == [[]] * 4, "untrained, two epochs, statistics"


def test_a_step_differentiates_without_onednn_where_that_is_needed(tiny_training, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    enabled, backward = [], torch.Tensor.backward

    def recording(tensor, *arguments, **options):
        enabled.append(torch.backends.mkldnn.enabled)
        return backward(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", recording)
    take_steps(stepper_of(tiny_training("resnet9", width=0.05)), 1)
    assert enabled == [False]
