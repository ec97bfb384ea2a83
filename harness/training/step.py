"""One optimiser step, a function of tensors only; it can be compiled, and on CUDA it is captured in one CUDA graph."""

import copy
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from cerdeq.equilibrium import FixedPoint, set_progress
from cerdeq.errors import is_out_of_memory
from harness.common.errors import first_words
from harness.config.training import Training
from harness.data.augment import augment
from harness.machine.device import without_faulty_onednn
from harness.machine.subnormals import without_subnormals
from harness.methods import make_method
from harness.training.capture import CapturedStep, restore_afterwards, warm_up
from harness.training.compilation import reset_compiler
from harness.training.objective import Attack, Loss, make_objective

_log = logging.getLogger(__name__)
_LARGEST = 1e15
CUDA_GRAPHS, COMPILED, CHANNELS_LAST, FUSED = "CUDA graphs", "compiled steps", "channels-last format", "fused Adam"
"""The optimisations of a step; each that fails is given up, and steps go on without it."""

Choices = tuple[Tensor, ...]
"""Index, flip, and crop offsets down and across of a batch's examples, each [B]."""


@dataclass(eq=False)
class Stepper:
    """Optimiser steps on `images` (uint8 [N, C, H, W]) and `labels` [N], all on one device.

    A step returns a tensor [3]: the loss, and the numbers of clean and of certified correct examples at its eps (NaN
    if the method does not bound whole balls).

    compiled: True if the losses of training and of attacks are compiled.
    is_last_try: False if the caller tries again with smaller parts of batches once memory runs out; if True, a graph
        that does not fit is given up.
    failed_optimisations: a line for each optimisation that failed; steps go on without it.

    Made from these:

    captured: True if a step is one CUDA graph, as on CUDA unless that fails.
    averaged: a copy of the model that becomes the average over steps, or None if the recipe has no average.
    """

    config: Training
    model: nn.Sequential
    images: Tensor
    labels: Tensor
    compiled: bool = False
    is_last_try: bool = False
    failed_optimisations: list[str] = field(default_factory=list)

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
        self.memory_format = torch.channels_last
        self.set_compiled(self.compiled)

    def set_compiled(self, compiled: bool) -> None:
        """Set whether the losses of training and of attacks are compiled, which happens at their first call."""
        self.compiled = compiled
        if compiled:
            reset_compiler()
        self.attacks: dict[str, Attack] = {}
        self.losses: dict[str, Loss] = {}
        for method in (self.method.at(0.0), self.method.at(1.0)):
            attack, loss = make_objective(self.config, method, self.model, compiled)
            self.attacks[method.name], self.losses[method.name] = attack, loss

    def __call__(self, choices: Choices, eps: float, learning_rate: float) -> Tensor:
        """Take one step on the chosen examples."""
        progress = eps / float(self.config.train_eps)
        for network in self.networks:
            set_progress(network, progress)
        method = self.method.at(progress).name
        counts = [module.iterations for module in self.model.modules() if isinstance(module, FixedPoint)]
        key: tuple[str | int, ...] = (method, *counts)
        if key not in self.graphs:
            self.graphs.clear()  # eps only rises, so older graphs are not needed; each holds memory
            self.graphs[key] = self._make_step(choices, method)
        self.eps.fill_(eps)
        self.learning_rate.fill_(learning_rate)
        return self.graphs[key](choices)

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
        x = augment(self.images, *choices).contiguous(memory_format=self.memory_format)
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
        """Return a function that takes one step by `method`, with every optimisation that works on this machine.

        Trial steps show which do; the model, the optimiser and the random generators are restored after them. An eager
        step on a CPU has no trial: channels-last format and fused Adam work on all of them.

        Raises:
            Exception: an eager step without any optimisation fails, or memory runs out.
        """
        eager = partial(self.eager, method=method)
        while self.compiled or self.captured:
            suspect = FUSED
            try:
                with restore_afterwards(self._state()):
                    self._step_on_zeros()
                    suspect = COMPILED if self.compiled else CHANNELS_LAST
                    self.eps.fill_(1e-6)
                    if not self.captured:
                        eager(choices)
                        return eager
                    stream = warm_up(partial(eager, choices))
                    self._free_gradients()
                    suspect = CUDA_GRAPHS
                    return CapturedStep(eager, choices, stream)
            except Exception as error:  # whatever a compiler, a driver or a library may do
                is_too_large = is_out_of_memory(error) and not (self.is_last_try and suspect == CUDA_GRAPHS)
                if is_too_large or not self._give_up(suspect, error):
                    raise
            self._free_gradients()  # here, where the error holds neither graphs nor gradients
        return eager

    def _free_gradients(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        gc.collect()

    def _give_up(self, optimisation: str, error: Exception) -> bool:
        """Switch off an optimisation that failed. Return False if none is left to switch off."""
        if optimisation == CUDA_GRAPHS:
            self.captured = False
        elif optimisation == COMPILED:
            self.set_compiled(False)
        elif optimisation == FUSED and any(group["fused"] for group in self.optimiser.param_groups):
            for group in self.optimiser.param_groups:
                group["fused"] = False
        elif optimisation == CHANNELS_LAST and self.memory_format == torch.channels_last:
            self.memory_format = torch.contiguous_format
            for network in self.networks:
                network.to(memory_format=torch.contiguous_format)
            for moments in self.optimiser.state.values():  # Adam wants those in the format of the weights
                moments.update({name: moment.contiguous() for name, moment in moments.items()})
        else:
            return False
        self.failed_optimisations.append(f"{optimisation} given up: {_describe_cause(error)}")
        _log.warning(self.failed_optimisations[-1])
        return True

    def _state(self) -> list[Tensor]:
        """Return every tensor that a step changes in place, after creating the optimiser's moments if it has none."""
        if not self.optimiser.state:
            try:
                self._step_on_zeros()  # makes moments, and moves nothing
            except Exception:
                self.optimiser.state.clear()
                raise
            for moments in self.optimiser.state.values():
                moments["step"].zero_()
        moments = [tensor for state in self.optimiser.state.values() for tensor in state.values()]
        return [tensor for network in self.networks for tensor in _tensors_of(network)] + moments

    def _step_on_zeros(self) -> None:
        """Take a step of the optimiser on gradients of 0. Its rate is not 0: Adam that is not fused divides by it."""
        self.learning_rate.fill_(1e-6)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        self.optimiser.step()


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


def _describe_cause(error: BaseException) -> str:
    """Return the first of the errors that led to one, as a line: a failed capture only says that one came before."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {first_words(error)}"
