"""Values on the pretended GPU: each operator runs there for its checks, then on the CPU, on the same memory.

Device memory is the host's, so that a CPU tensor can be laid over a CUDA tensor. Not within a capture, and not of
compiled kernels, which torch does not dispatch one by one: `uncaptured_values` captures no steps.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_SHAPED_BY_VALUES = {  # outputs whose shapes depend on values, and solvers, whose library has no stand-in
    "nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim", "repeat_interleave",
    "_linalg_solve_ex", "linalg_solve_ex", "linalg_lu_factor_ex", "linalg_inv_ex", "_linalg_svd", "_linalg_eigvals",
}  # fmt: skip
_WITHOUT_VALUES = {
    "set_", "resize_", "record_stream", "empty", "empty_strided", "new_empty", "empty_like", "new_empty_strided",
}  # fmt: skip


class Values(TorchDispatchMode):
    """Within, CUDA tensors have the values that the CPU computes."""

    def __enter__(self) -> "Values":
        self.cudnn = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False  # most of its operators exist on CUDA alone
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.backends.cudnn.enabled = self.cudnn
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _on_cuda((args, kwargs)) or torch.cuda.is_current_stream_capturing():
            return function(*args, **kwargs)
        name = function._schema.name.removeprefix("aten::")
        on_host = _map(_on_host, args), _map(_on_host, kwargs)
        if name == "_local_scalar_dense":
            torch.cuda.current_stream().synchronize()  # as reading a value does
            return on_host[0][0].item()
        if name in _SHAPED_BY_VALUES or (name == "index" and _has_mask(args)):
            if not name.startswith(("_linalg", "linalg")):
                torch.cuda.current_stream().synchronize()  # as the host does to learn the shape
            return _map(_on_device, function(*on_host[0], **on_host[1]))
        if name in ("index_put", "index_put_") and _has_mask(args):
            if args[2].numel() > 1:  # one number is filled in where the mask is, whose elements nobody counts
                torch.cuda.current_stream().synchronize()
            result = function(*on_host[0], **on_host[1])
            return args[0] if name == "index_put_" else _map(_on_device, result)
        result = function(*args, **kwargs)
        views = any(returned.alias_info and not returned.alias_info.is_write for returned in function._schema.returns)
        if name not in _WITHOUT_VALUES and not views:
            self._fill(result, name, function, *on_host)
        return result

    def _fill(self, result: Any, name: str, function: Any, args: Any, kwargs: Any) -> None:
        """Compute on the CPU and write into the result on the device."""
        if name == "_to_copy":
            _on_host(result).copy_(args[0])
            return
        if name == "copy_":
            args[0].copy_(args[1])
            return
        if name == "cudnn_batch_norm":  # uncounted_rounding allows cuDNN
            function, result = torch.ops.aten.native_batch_norm.default, result[:3]
        kwargs.pop("pin_memory", None)
        for device, host in zip(_leaves(result), _leaves(function(*args, **kwargs)), strict=True):
            if isinstance(device, Tensor) and device.is_cuda and device.shape == host.shape and host.numel():
                laid_over = _on_host(device)
                if laid_over.data_ptr() != host.data_ptr():
                    laid_over.copy_(host)


@contextmanager
def uncaptured_values() -> Iterator[None]:
    """Within, CUDA tensors have values in training steps, too: these are taken one by one rather than captured."""
    with patch("harness.training.step.CapturedStep", lambda step, choices, stream: step), Values():
        yield


def _map(function: Callable, value: Any) -> Any:
    """Apply a function to whatever lies in lists, tuples and dictionaries; torch's tree_map takes half of all time."""
    if isinstance(value, list | tuple):
        return tuple(_map(function, item) for item in value)
    return {k: _map(function, v) for k, v in value.items()} if isinstance(value, dict) else function(value)


def _leaves(value: Any) -> Iterator:
    if not isinstance(value, list | tuple | dict):
        yield value
        return
    for item in value.values() if isinstance(value, dict) else value:
        yield from _leaves(item)


def _on_cuda(arguments: Any) -> bool:
    return any(
        leaf.is_cuda if isinstance(leaf, Tensor) else isinstance(leaf, torch.device) and leaf.type == "cuda"
        for leaf in _leaves(arguments)
    )


def _has_mask(args: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])


def _on_host(value: Any) -> Any:
    """A CPU tensor on the memory of a CUDA one; what is neither tensor nor device is itself."""
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    if not isinstance(value, Tensor) or not value.is_cuda:
        return value
    storage = value.untyped_storage()
    if not storage.nbytes():
        return torch.empty(value.shape, dtype=value.dtype)
    memory = (ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr())
    storage_bytes = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=value.dtype).set_(storage_bytes, value.storage_offset(), value.shape, value.stride())


def _on_device(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    result = torch.empty(value.shape, dtype=value.dtype, device="cuda")
    if value.numel():
        _on_host(result).copy_(value)
    return result
