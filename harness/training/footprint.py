"""How much memory a trial's training will take, found out without taking it."""

import math
import weakref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from baselines import DATASETS, build
from cerdeq.equilibrium import advance
from harness.config.trial import TrialConfig
from harness.methods import make_method
from harness.training.step import objective


def training_memory(config: TrialConfig, images: int) -> int:
    """Bytes that tensors take at the fullest moment of training on so many images: these, the network, its gradients,
    Adam's moments and the average where there is one, and what a part of a batch leaves between forward and backward.

    Counted on an eager step whose tensors have shapes and no values. What kernels, the allocator and the CUDA context
    take beside them is not in it (nothing but the device knows), nor is judging, whose batches shrink where they must.
    """
    info, settings = DATASETS[config.dataset], config.train
    batch = settings.batch_size // settings.accumulate
    data = images * (math.prod(info.shape) + torch.long.itemsize)
    with FakeTensorMode():
        model = build(config.model, config.dataset, config.width, **config.options).train()
        advance(model, 1.0)  # the ramp's end, where unrolled solves are longest
        weights = [*model.parameters(), *model.buffers()]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        method = make_method(config.method, config.method_options)
        attack, loss = objective(config, method, model)
        x, labels, eps = torch.zeros(batch, *info.shape), torch.zeros(batch, dtype=torch.long), torch.zeros(())
        with _Alive() as step:
            loss(x, labels, eps, attack(x, labels, eps))[0].backward()
    held = _size(weights) + 3 * _size(list(model.parameters())) + _size([x, labels])
    averaged = 0 if settings.ema_decay is None else _size(weights)
    return data + held + averaged + step.most


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors made within. most: the most there have been at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in before:
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        if storage in self.known:
            return
        self.known[storage] = None
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


def _size(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
