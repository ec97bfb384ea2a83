"""One optimiser step, a function of tensors only; on CUDA compiled and captured in one CUDA graph."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines import DATASETS
from cerdeq.bounds import trace
from cerdeq.equilibrium import FixedPoint, advance
from harness.settings import TrialConfig, parse_eps
from harness.training.augment import augmented
from harness.training.losses import METHODS, Batch, method_at
from harness.training.regularisers import balance, tightness


@dataclass(frozen=True)
class Controls:
    """What a schedule decides, as scalar tensors, so that a change of value never recompiles."""

    eps: Tensor
    learning_rate: Tensor


Loss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Stepper:
    """Takes optimiser steps on `images` (uint8 [N, C, H, W]) and `labels` [N]; all on one device.

    A step returns a tensor [3]: the loss, and the numbers of clean and of certified correct examples at its eps.
    """

    def __init__(
        self,
        config: TrialConfig,
        model: nn.Sequential,
        optimiser: torch.optim.Optimizer,
        images: Tensor,
        labels: Tensor,
    ):
        self.config, self.model, self.optimiser, self.images, self.labels = config, model, optimiser, images, labels
        self.target = float(parse_eps(config.eps))
        self.controls = Controls(*(torch.zeros((), device=images.device) for _ in range(2)))
        on_cuda = images.device.type == "cuda"
        methods = {config.method, method_at(config.method, config.method_options, progress=1.0)}
        losses = {method: _loss_function(config, method, model) for method in methods}
        if on_cuda:
            torch._dynamo.config.recompile_limit = 64  # a network is a compile of its own, of the same code
            losses = {method: torch.compile(loss, fullgraph=True, dynamic=False) for method, loss in losses.items()}
        self.losses: dict[str, Loss] = losses
        self.graphs: dict[tuple[str | int, ...], _Graph] | None = {} if on_cuda else None

    def __call__(self, choices: tuple[Tensor, ...], eps: float, learning_rate: float) -> Tensor:
        """One step on the chosen examples (index, flip, down, across, each [B])."""
        self.controls.eps.fill_(eps)
        self.controls.learning_rate.fill_(learning_rate)
        progress = eps / self.target
        advance(self.model, progress)
        method = method_at(self.config.method, self.config.method_options, progress)
        if self.graphs is None:
            return self.eager(choices, method)
        counts = [module.iterations for module in self.model.modules() if isinstance(module, FixedPoint)]
        key: tuple[str | int, ...] = (method, *counts)
        if key not in self.graphs:
            self.graphs[key] = _Graph(self, method, len(choices[0]))
            self.controls.eps.fill_(eps)
        return self.graphs[key](choices)

    def eager(self, choices: tuple[Tensor, ...], method: str) -> Tensor:
        """Augment, bound, differentiate, clip, update, by one method's loss."""
        x = augmented(self.images, *choices).contiguous(memory_format=torch.channels_last)
        loss, report = self.losses[method](x, self.labels[choices[0]], self.controls.eps)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = self.controls.learning_rate
        self.optimiser.step()
        return report


def make_optimiser(model: nn.Module, device: torch.device) -> torch.optim.Adam:
    """Adam without weight decay; its learning rate is a tensor that each step sets."""
    on_cuda = device.type == "cuda"
    rate = torch.zeros((), device=device)
    return torch.optim.Adam(model.parameters(), lr=rate, fused=True, capturable=on_cuda)


def _loss_function(config: TrialConfig, name: str, model: nn.Sequential) -> Loss:
    """(x, labels, eps) -> loss, and [loss, clean correct, certified correct], by the method `name`."""
    method, info = METHODS[name], DATASETS[config.dataset]
    options = config.method_options if name == config.method else {}
    program = trace(model, linear=method.linear)
    std = torch.tensor(info.std, device=next(model.parameters()).device).view(-1, 1, 1)
    target = float(parse_eps(config.eps))
    weight = config.train.regularisation
    regularised = [
        step.name
        for step in program.steps
        if config.train.regularise_equilibria or not isinstance(step.target, FixedPoint)
    ]

    def loss_and_report(x: Tensor, labels: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        progress = eps / target
        losses = method.loss(program, Batch(x, labels, info.classes, eps, progress), **options)
        boxes = [losses.preactivations[name] for name in regularised if name in losses.preactivations]
        regulariser = tightness(losses.input_radius / std, boxes) + balance(boxes)
        loss = losses.robust + weight * (1 - progress) * regulariser
        clean = (losses.clean > 0).all(1).sum()
        certified = (losses.lower > 0).all(1).sum()
        return loss, torch.stack([loss.detach(), clean.to(loss), certified.to(loss)])

    return loss_and_report


class _Graph:
    """The whole step as one CUDA graph on fixed buffers. Warming up leaves model and optimiser as they were."""

    def __init__(self, stepper: Stepper, method: str, batch: int):
        device = stepper.images.device
        self.choices = (
            torch.zeros(batch, dtype=torch.long, device=device),
            torch.zeros(batch, dtype=torch.bool, device=device),
            torch.zeros(batch, dtype=torch.long, device=device),
            torch.zeros(batch, dtype=torch.long, device=device),
        )
        self.choices[0].copy_(torch.arange(batch, device=device))
        stepper.controls.eps.fill_(1e-6)
        state = _state(stepper.model, stepper.optimiser)
        kept = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                stepper.eager(self.choices, method)
        torch.cuda.current_stream().wait_stream(stream)
        stepper.optimiser.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.report = stepper.eager(self.choices, method)
        with torch.no_grad():
            for tensor, value in zip(state, kept, strict=True):
                tensor.copy_(value)

    def __call__(self, choices: tuple[Tensor, ...]) -> Tensor:
        for buffer, value in zip(self.choices, choices, strict=True):
            buffer.copy_(value)
        self.graph.replay()
        return self.report.clone()


def _state(model: nn.Module, optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Every tensor that a step changes in place, the optimiser's made first where it has none yet."""
    if not optimiser.state:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()  # zero gradients at rate 0: moments are made, nothing moves
        for moments in optimiser.state.values():
            moments["step"].zero_()
    moments = [tensor for state in optimiser.state.values() for tensor in state.values()]
    return [*model.parameters(), *model.buffers(), *moments]
