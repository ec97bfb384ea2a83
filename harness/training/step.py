"""One optimiser step, a function of tensors only; it can be compiled, and on CUDA it is captured in one CUDA graph."""

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cerdeq.bounds import Program
from cerdeq.equilibrium import FixedPoint, set_progress
from harness.config.training import Training
from harness.data.augment import augment
from harness.machine.device import without_faulty_onednn
from harness.machine.subnormals import without_subnormals
from harness.methods import make_method
from harness.training.capture import CapturedStep, restore_afterwards, warm_up
from harness.training.compilation import reset_compiler
from harness.training.objective import Attack, Loss, make_objective

_LARGEST = 1e15

Choices = tuple[Tensor, ...]
"""Index, flip, and crop offsets down and across of a batch's examples, each [B]."""


@dataclass(eq=False)
class Stepper:
    """Optimiser steps on `images` (uint8 [N, C, H, W]) and `labels` [N], all on one device.

    A step returns a tensor [3]: the loss, and the numbers of clean and of certified correct examples at its eps (NaN
    if the method does not bound whole balls).

    compiled: True if the losses of training and of attacks are compiled.
    announce: called with what the stepper does from now on, before its steps are compiled and after.
    teacher: of a distilling method.

    Made from these:

    captured: True if a step is one CUDA graph, as on CUDA.
    layout: the memory format of images.
    averaged: a copy of the model that becomes the average over steps, or None if the recipe has no average.
    """

    config: Training
    model: nn.Sequential
    images: Tensor
    labels: Tensor
    compiled: bool = False
    announce: Callable[[str], None] = lambda activity: None
    teacher: Program | None = None

    def __post_init__(self) -> None:
        device = self.images.device
        # Scheduled values are tensors, so that a change of value never recompiles.
        self.eps, self.learning_rate = (torch.zeros((), device=device) for _ in range(2))
        self.optimiser = make_optimiser(self.model, device)
        self.averaged = None if self.config.train.ema_decay is None else copy.deepcopy(self.model)
        self.networks = [self.model] if self.averaged is None else [self.model, self.averaged]
        self.method = make_method(self.config.method, self.config.method_options)
        self.graphs: dict[tuple[str | int, ...], Callable[[Choices], Tensor]] = {}
        self.captured = device.type == "cuda"
        self.layout = image_layout(self.model)
        if self.compiled:
            reset_compiler()
        self.attacks: dict[str, Attack] = {}
        self.losses: dict[str, Loss] = {}
        for method in (self.method.at(0.0), self.method.at(1.0)):
            attack, loss = make_objective(self.config, method, self.model, self.compiled, self.teacher)
            self.attacks[method.name], self.losses[method.name] = attack, loss

    def __call__(self, choices: Choices, eps: float, learning_rate: float) -> Tensor:
        """Take one step on the chosen examples."""
        progress = eps / float(self.config.train_eps)
        for network in self.networks:
            set_progress(network, progress)
        method = self.method.at(progress).name
        counts = [module.iterations for module in self.model.modules() if isinstance(module, FixedPoint)]
        key: tuple[str | int, ...] = (method, *counts)
        is_first = key not in self.graphs
        if is_first:
            if self.compiled:
                self.announce("compiles its steps, which may take minutes")
            self.graphs.clear()  # eps only rises, so older graphs are not needed; each holds memory
            self.graphs[key] = self._make_step(choices, method)
        self.eps.fill_(eps)
        self.learning_rate.fill_(learning_rate)
        report = self.graphs[key](choices)
        if is_first and self.compiled:
            self.announce("trains")
        return report

    @without_subnormals()
    def eager(self, choices: Choices, method: str) -> Tensor:
        """Augment, attack, bound, differentiate, clip, update, average, by one method's loss."""
        self.optimiser.zero_grad(set_to_none=True)
        parts = zip(*(choice.chunk(self.config.train.accumulate) for choice in choices), strict=True)
        reports = torch.stack([self._differentiate(part, method) for part in parts])
        if self.config.train.clip_norm is not None:
            # First clip entries, so that squares do not overflow: deep networks begin with gradients past 1e19.
            nn.utils.clip_grads_with_norm_(self.model.parameters(), _LARGEST, _largest_gradient(self.model))
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        self.optimiser.step()
        self._average()
        return torch.cat([reports[:, :1].mean(0), reports[:, 1:].sum(0)])

    def _differentiate(self, choices: Choices, method: str) -> Tensor:
        """Add the gradients of a part of a batch, and return its report [3]."""
        x = augment(self.images, *choices).contiguous(memory_format=self.layout)
        labels = self.labels[choices[0]]
        loss, report = self.losses[method](x, labels, self.eps, self.attacks[method](x, labels, self.eps))
        with without_faulty_onednn(self.model):
            (loss / self.config.train.accumulate).backward()
        return report

    @torch.no_grad()
    def _average(self) -> None:
        decay = self.config.train.ema_decay
        if self.averaged is None or decay is None:
            return
        steps = next(iter(self.optimiser.state.values()))["step"].to(self.eps)
        weight = (1 / steps).clamp(min=1 - decay)  # a plain mean at first: the untrained network has no part in it
        for average, value in zip(_tensors_of(self.averaged), _tensors_of(self.model), strict=True):
            if average.is_floating_point():
                average.lerp_(value, weight)  # one by one, since _foreach_lerp_ reads its weight on the host

    def _make_step(self, choices: Choices, method: str) -> Callable[[Choices], Tensor]:
        """Return a function that takes one step by `method`: on CUDA one CUDA graph.

        Before a capture steps are taken for nothing: the model, the optimiser and the random generators are restored.
        """
        eager = partial(self.eager, method=method)
        if not self.captured:
            return eager
        with restore_afterwards(self._state()):
            self.eps.fill_(1e-6)
            stream = warm_up(partial(eager, choices))
            self.optimiser.zero_grad(set_to_none=True)
            gc.collect()  # else the gradients of other streams' steps lie in memory beside the graph's
            return CapturedStep(eager, choices, stream)

    def _state(self) -> list[Tensor]:
        """Return every tensor that a step changes in place, after creating the optimiser's moments if it has none."""
        if not self.optimiser.state:
            self._step_on_zeros()  # makes moments, and moves nothing
            for moments in self.optimiser.state.values():
                moments["step"].zero_()
        moments = [tensor for state in self.optimiser.state.values() for tensor in state.values()]
        return [tensor for network in self.networks for tensor in _tensors_of(network)] + moments

    def _step_on_zeros(self) -> None:
        """Take a step of the optimiser on gradients of 0."""
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        self.optimiser.step()


def image_layout(model: nn.Module) -> torch.memory_format:
    """Return the memory format in which a network takes images.

    Convolutions are faster in channels-last order, but a CPU then needs ten times as long to add or scale pixels.
    """
    has_convolutions = any(parameter.dim() == 4 for parameter in model.parameters())
    return torch.channels_last if has_convolutions else torch.contiguous_format


def make_optimiser(model: nn.Module, device: torch.device) -> torch.optim.Adam:
    """Return Adam without weight decay; its learning rate is a tensor that each step sets."""
    on_cuda = device.type == "cuda"
    rate = torch.zeros((), device=device)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate, fused=True, capturable=on_cuda)
    optimiser._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]  # warming up is intended
    return optimiser


def _largest_gradient(model: nn.Module) -> Tensor:
    """Return the largest magnitude of all gradients' entries."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if gradients[0].is_cuda:
        return nn.utils.get_total_norm(gradients, torch.inf)
    ends = [end for gradient in gradients for end in gradient.aminmax()]  # on CPUs ten times as fast as that norm
    return torch.stack(ends).abs().max()


def _tensors_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
