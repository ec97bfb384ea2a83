"""The device that this process computes on: which, how, and how much of its memory."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cerdeq.exact_products import InexactProductsError, check_environment
from harness.common.errors import InputError, first_words

_CONTEXT = 2**30  # bytes of a GPU's memory: kernels, workspaces and graphs of a process, beside its tensors
_NO_DRIVER = (9, 12)  # NVML's errors: the driver is not loaded, its library is not found

_USE_CPU = 'To run on the CPU, set CUDA_VISIBLE_DEVICES=""'


class NoGpuError(InputError):
    """There is a GPU, but torch cannot use it."""


def best_device() -> torch.device:
    """Return a GPU if there is one, else the CPU.

    On a GPU, float32 products are set to be computed in float32, and no cuDNN kernel is chosen by timing.

    Raises:
        NoGpuError: NVIDIA's driver lists a GPU and torch sees none. CUDA_VISIBLE_DEVICES="" means the CPU.
        InputError: an environment variable allows products in reduced precision.
    """
    refuse_reduced_precision()
    if not torch.cuda.is_available():
        _refuse_unusable_cards()
        return torch.device("cpu")
    torch.backends.cudnn.deterministic = True
    _switch_tf32(False)
    return torch.device("cuda")


def has_bf16(device: torch.device) -> bool:
    """Return True if a device has instructions for bf16: without them, products are about 80 times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # bf16: of ARM


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def refuse_reduced_precision() -> None:
    """Raise InputError for an environment variable that allows products in reduced precision."""
    try:
        check_environment()
    except InexactProductsError as error:
        raise InputError(str(error)) from None


def limit_gpu_memory(gpus: float) -> None:
    """Limit the tensors of this process to its share of a GPU's memory, less what its CUDA context takes.

    Args:
        gpus: how many GPUs are reserved for the process, such as 0.5; 0 for none, which does nothing.

    Raises:
        NoGpuError: torch cannot use a GPU.
    """
    if not gpus:
        return
    try:
        torch.zeros(1, device="cuda")
        total = torch.cuda.get_device_properties(0).total_memory
    except (RuntimeError, AssertionError) as error:  # without CUDA torch asserts
        advice = "" if torch.cuda.is_available() else _advice()  # a GPU that is busy or full needs no other driver
        message = f"{gpus:g} GPU is reserved for this process, and torch cannot use it: {first_words(error)}{advice}"
        raise NoGpuError(message) from error
    torch.cuda.set_per_process_memory_fraction(memory_share(gpus, total) / total)


def memory_share(gpus: float, total: int) -> int:
    """Return how many bytes of a GPU's `total` a process's tensors may take: its share less its CUDA context."""
    share = int(min(1.0, gpus) * total)
    return max(share - _CONTEXT, share // 2)


def _refuse_unusable_cards() -> None:
    """Raise NoGpuError if there are GPUs that torch cannot use: without it the run would quietly be one on the CPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return
    if cards := _count_listed_cards():
        number = "1 GPU" if cards == 1 else f"{cards} GPUs"
        setting = "" if visible is None else f", of which CUDA_VISIBLE_DEVICES={visible} may select none"
        can_use = f"torch {torch.__version__} can use none{_advice()}"
        raise NoGpuError(f"NVIDIA's driver lists {number}{setting}; {can_use}. {_USE_CPU}")


def _count_listed_cards() -> int:
    """Return how many GPUs NVIDIA's driver lists, whatever torch can do with them. Raises NoGpuError if it fails."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    count = ctypes.c_uint(0)
    status = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    if status not in (0, *_NO_DRIVER):
        nvml.nvmlErrorString.restype = ctypes.c_char_p
        reason = nvml.nvmlErrorString(status).decode()
        raise NoGpuError(f"NVIDIA's driver cannot list its GPUs: {reason}. {_USE_CPU}")
    return count.value


def _advice() -> str:
    """Return what to do, which depends on what torch was built for."""
    if torch.version.cuda is None:
        return "; this torch is built without CUDA: install one with it"
    return f"; this torch is built for CUDA {torch.version.cuda}: see docs/gpu.md for drivers and torch's other builds"


@contextmanager
def without_faulty_onednn(model: nn.Module) -> Iterator[None]:
    """Switch oneDNN off in the block if it would write the gradients of the model's weights past their memory.

    oneDNN 3.13 (torch 2.15) writes past the end of the gradient of a strided 1x1 convolution in channels-last format,
    on CPUs with AVX2 and without AVX-512; seen with fewer than 8 input channels.
    """
    strided = any(
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1)
        for module in model.modules()
    )
    onednn: Any = torch.backends.mkldnn
    before = onednn.enabled
    if strided and torch.backends.cpu.get_cpu_capability() != "AVX512":
        onednn.enabled = False
    try:
        yield
    finally:
        onednn.enabled = before


@contextmanager
def tf32(device: torch.device, enabled: bool) -> Iterator[None]:
    """Compute float32 products in TF32 in the block if `enabled`, and in float32 after it.

    Monitoring and evaluation need float32: an equilibrium's solve in TF32 may cycle before it meets its tolerance.
    """
    if device.type == "cuda":
        _switch_tf32(enabled)
    try:
        yield
    finally:
        if device.type == "cuda":
            _switch_tf32(False)


def _switch_tf32(on: bool) -> None:
    """Switch TF32 by torch's older settings: the compiler refuses to run if only the newer ones are set."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
