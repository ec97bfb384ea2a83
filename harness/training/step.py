"""One optimiser step, a function of tensors only; it can be compiled, and on CUDA it is captured in one CUDA graph.

Whole steps are captured, since `torch.compile(mode="reduce-overhead")` captures losses alone: it leaves 57 launches a
step instead of 8, hundreds with an attack, and needs a compiler (docs/gpu-cost.md).
"""

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from baselines import DATASETS
from cerdeq.bounds import trace
from cerdeq.bounds.memory import is_out_of_memory
from cerdeq.equilibrium import FixedPoint, advance
from harness.config.trial import TrialConfig
from harness.device import without_faulty_onednn
from harness.errors import first_words
from harness.methods import Batch, Losses, Method, cross_entropies, cross_entropy, make_method
from harness.subnormals import without_subnormals
from harness.training.augment import augment
from harness.training.compilation import compiled_loss, prepare
from harness.training.regularisers import balance, tightness

_log = logging.getLogger(__name__)
_LARGEST = 1e15
_WARM_UP_STEPS = 3  # before a capture, as torch asks for
_TIMED_STEPS = 3  # the first one also fills caches
CUDA_GRAPHS, COMPILED, CHANNELS_LAST, FUSED = "CUDA graphs", "compiled steps", "channels-last format", "fused Adam"
"""The optimisations of a step; each that fails is given up, and steps go on without it."""

Attack = Callable[[Tensor, Tensor, Tensor], Tensor | None]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(eq=False)
class Stepper:
    """Optimiser steps on `images` (uint8 [N, C, H, W]) and `labels` [N], all on one device.

    A step returns a tensor [3]: the loss, and the numbers of clean and of certified correct examples at its eps (NaN
    if the method does not bound whole balls).

    averaged: a copy of the model that becomes the average over steps.
    compiled: True if the losses of training and of attacks are compiled.
    divided: True if batches cannot be divided further for lack of memory; then a graph that does not fit is given up.
    captured: True if a step is one CUDA graph, as on CUDA unless that fails.
    failed_optimisations: a line for each optimisation that failed; steps go on without it.
    """

    config: TrialConfig
    model: nn.Sequential
    optimiser: torch.optim.Optimizer
    images: Tensor
    labels: Tensor
    averaged: nn.Module | None = None
    compiled: bool = False
    divided: bool = False
    failed_optimisations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Scheduled values are tensors, so that a change of value never recompiles.
        self.eps, self.learning_rate = (torch.zeros((), device=self.images.device) for _ in range(2))
        self.method = make_method(self.config.method, self.config.method_options)
        self.attacks: dict[str, Attack] = {}
        self.losses: dict[str, Loss] = {}
        self.graphs: dict[tuple[str | int, ...], Callable[[tuple[Tensor, ...]], Tensor]] = {}
        self.captured = self.images.device.type == "cuda"
        self.memory_format = torch.channels_last
        if self.compiled:
            prepare()
        self._make_objectives()

    def _make_objectives(self) -> None:
        for method in (self.method, self.method.at(1.0)):
            attack, loss = objective(self.config, method, self.model, self.compiled)
            self.attacks[method.name], self.losses[method.name] = attack, loss

    def __call__(self, choices: tuple[Tensor, ...], eps: float, learning_rate: float) -> Tensor:
        """Take one step on the chosen examples (index, flip, down, across, each [B])."""
        method = self._advance(eps)
        counts = [module.iterations for module in self.model.modules() if isinstance(module, FixedPoint)]
        key: tuple[str | int, ...] = (method, *counts)
        if key not in self.graphs:
            self.graphs.clear()  # eps only rises, so older graphs are not needed; each holds memory
            self.graphs[key] = self._make_step(choices, method)
        self.eps.fill_(eps)
        self.learning_rate.fill_(learning_rate)
        return self.graphs[key](choices)

    def _advance(self, eps: float) -> str:
        """Set what a schedule decides at `eps` and return the name of the method there."""
        progress = eps / float(self.config.train_eps)
        for network in (self.model, self.averaged):
            if network is not None:
                advance(network, progress)
        return self.method.at(progress).name

    def seconds_per_step(self, choices: tuple[Tensor, ...], eps: float) -> float:
        """Return the seconds of the fastest of a few eager steps on a CPU; restore the state after them."""
        method, seconds = self._advance(eps), []
        self.learning_rate.zero_()
        self.eps.fill_(eps)
        with _restoring_state(self):
            for _ in range(_TIMED_STEPS):
                started = time.perf_counter()
                self.eager(choices, method)
                seconds.append(time.perf_counter() - started)
        return min(seconds)

    def _make_step(self, choices: tuple[Tensor, ...], method: str) -> Callable[[tuple[Tensor, ...]], Tensor]:
        """Return a function that takes one step by `method`, with every optimisation that works on this machine.

        Trial steps show which do; the model, the optimiser and the random generators are restored after them.

        Raises:
            Exception: an eager step without any optimisation fails, or memory runs out.
        """
        eager = partial(self.eager, method=method)
        if not (self.compiled or self.captured):
            return eager
        while True:
            trying = FUSED
            try:
                with _restoring_state(self):
                    _step_on_zeros(self.model, self.optimiser)
                    trying = self._suspect()
                    stream = self._warm_up(choices, method)
                    if not self.captured:
                        return eager
                    trying = CUDA_GRAPHS
                    return _Graph(eager, choices, stream)
            except Exception as error:  # whatever a compiler, a driver or a library may do
                is_too_large = is_out_of_memory(error) and not (self.divided and trying == CUDA_GRAPHS)
                if is_too_large or not self._give_up(trying, error):
                    raise
            self.optimiser.zero_grad(set_to_none=True)
            gc.collect()  # here, where the error holds neither graphs nor gradients

    def _warm_up(self, choices: tuple[Tensor, ...], method: str) -> "torch.cuda.Stream | None":
        """Take steps on a new stream, as a capture needs, and return the stream; on a CPU take one step."""
        self.eps.fill_(1e-6)
        self.learning_rate.fill_(1e-6)
        if self.images.device.type == "cpu":
            self.eager(choices, method)
            return None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_STEPS):
                self.eager(choices, method)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimiser.zero_grad(set_to_none=True)
        gc.collect()
        return stream

    def _suspect(self) -> str:
        """Return the optimisation to give up if a trial step fails."""
        if self.compiled:
            return COMPILED
        return CHANNELS_LAST if self.memory_format == torch.channels_last else FUSED

    def _give_up(self, what: str, error: Exception) -> bool:
        """Switch off an optimisation that failed. Return False if none is left to switch off."""
        if what == CUDA_GRAPHS:
            self.captured = False
        elif what == COMPILED:
            self.compiled = False
            self._make_objectives()
        elif what == CHANNELS_LAST:
            self.memory_format = torch.contiguous_format
            for network in (self.model, self.averaged):
                if network is not None:
                    network.to(memory_format=torch.contiguous_format)
            for moments in self.optimiser.state.values():  # fused Adam wants those in the format of the weights
                moments.update({name: moment.contiguous() for name, moment in moments.items()})
        elif any(group["fused"] for group in self.optimiser.param_groups):
            for group in self.optimiser.param_groups:
                group["fused"] = False
        else:
            return False
        self.failed_optimisations.append(f"{what} given up: {_describe_cause(error)}")
        _log.warning(self.failed_optimisations[-1])
        return True

    @without_subnormals()
    def eager(self, choices: tuple[Tensor, ...], method: str) -> Tensor:
        """Augment, attack, bound, differentiate, clip, update, average, by one method's loss."""
        self.optimiser.zero_grad(set_to_none=True)
        parts = zip(*(choice.chunk(self.config.train.accumulate) for choice in choices), strict=True)
        reports = torch.stack([self._differentiate(part, method) for part in parts])
        if self.config.train.clip_norm is not None:
            # First clip entries, so that squares do not overflow: deep networks begin with gradients past 1e19.
            nn.utils.clip_grad_norm_(self.model.parameters(), _LARGEST, norm_type=torch.inf)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        self.optimiser.step()
        self._average()
        return torch.cat([reports[:, :1].mean(0), reports[:, 1:].sum(0)])

    def _differentiate(self, choices: tuple[Tensor, ...], method: str) -> Tensor:
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
        for average, value in zip(_floats(self.averaged), _floats(self.model), strict=True):
            average.lerp_(value, weight)  # one by one, since _foreach_lerp_ reads its weight on the host


def make_optimiser(model: nn.Module, device: torch.device) -> torch.optim.Adam:
    """Return Adam without weight decay; its learning rate is a tensor that each step sets."""
    on_cuda = device.type == "cuda"
    rate = torch.zeros((), device=device)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate, fused=True, capturable=on_cuda)
    optimiser._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]  # warming up is intended
    return optimiser


def objective(
    config: TrialConfig, method: Method, model: nn.Sequential, compiled: bool = False
) -> tuple[Attack, Loss]:  # fmt: skip
    """Return the attack (x, labels, eps) -> adversary, and the loss (x, labels, eps, adversary) -> loss, report [3]."""
    attack_loss = compiled_loss(cross_entropies) if compiled else cross_entropies
    settings, info, target = config.train, DATASETS[config.dataset], float(config.train_eps)
    program = trace(model, linear=method.linear)
    std = torch.tensor(info.std, device=next(model.parameters()).device).view(-1, 1, 1)
    regularised = [
        step.name for step in program.steps if settings.regularise_equilibria or not isinstance(step.target, FixedPoint)
    ]

    def in_precision(x: Tensor) -> torch.autocast:
        # Uncached: the cache would return casts that an equilibrium's solve made without gradients.
        return torch.autocast(x.device.type, torch.bfloat16, enabled=settings.precision == "bf16", cache_enabled=False)

    def attack(x: Tensor, labels: Tensor, eps: Tensor) -> Tensor | None:
        with in_precision(x), _frozen(model):
            return method.attack(program, Batch(x, labels, info.classes, eps, eps / target, attack_loss=attack_loss))

    def regulariser(losses: Losses) -> Tensor:
        boxes = [losses.preactivations[name] for name in regularised if name in losses.preactivations]
        return tightness(losses.input_radius / std, boxes) + balance(boxes)

    def loss_and_report(
        x: Tensor, labels: Tensor, eps: Tensor, adversary: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        progress = eps / target
        with in_precision(x):
            losses = method.loss(program, Batch(x, labels, info.classes, eps, progress, adversary))
        loss = losses.robust
        if settings.kappa:
            loss = (1 - settings.kappa) * loss + settings.kappa * cross_entropy(losses.clean)
        if losses.preactivations:
            loss = loss + settings.regularisation * (1 - progress) * regulariser(losses)
        if settings.l1:
            loss = loss + settings.l1 * sum(p.abs().sum() for p in model.parameters() if p.dim() > 1)
        clean = (losses.clean > 0).all(1).sum().to(loss)
        certified = clean * torch.nan if losses.lower is None else (losses.lower > 0).all(1).sum().to(loss)
        return loss, torch.stack([loss.detach(), clean, certified])

    return attack, compiled_loss(loss_and_report) if compiled else loss_and_report


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Switch off the gradients of weights in the block, since compiled attacks would compute them for nothing."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _describe_cause(error: BaseException) -> str:
    """Return the first of the errors that led to one, as a line: a failed capture only says that one came before."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {first_words(error)}"


def _floats(model: nn.Module) -> list[Tensor]:
    """Return all parameters and buffers but counts."""
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]


class _Graph:
    """A step as one CUDA graph on fixed buffers."""

    def __init__(
        self,
        step: Callable[[tuple[Tensor, ...]], Tensor],
        choices: tuple[Tensor, ...],
        stream: torch.cuda.Stream | None,
    ):
        self.choices = tuple(choice.clone() for choice in choices)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.report = step(self.choices)

    def __call__(self, choices: tuple[Tensor, ...]) -> Tensor:
        for buffer, value in zip(self.choices, choices, strict=True):
            buffer.copy_(value)
        self.graph.replay()
        return self.report.clone()


@contextmanager
def _restoring_state(stepper: Stepper) -> Iterator[None]:
    """Restore the model, the optimiser, the average and the random generators at the end of the block."""
    state = _state_tensors(stepper)
    with torch.no_grad():  # a clone with gradients would hold nodes of the stream that it was made on
        saved = [tensor.clone() for tensor in state]
    device = stepper.images.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(state, saved, strict=True):
                    tensor.copy_(value)


def _step_on_zeros(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Take a step of the optimiser with gradients of 0. Its rate is not 0, by which Adam that is not fused divides."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimiser.param_groups:
        group["lr"] = torch.ones_like(group["lr"])
    optimiser.step()


def _state_tensors(stepper: Stepper) -> list[Tensor]:
    """Return every tensor that a step changes in place, after creating the optimiser's moments if it has none yet."""
    model, optimiser = stepper.model, stepper.optimiser
    if not optimiser.state:
        try:
            _step_on_zeros(model, optimiser)  # makes moments, and moves nothing
        except Exception:
            optimiser.state.clear()  # of what a step that failed has counted
            raise
        for moments in optimiser.state.values():
            moments["step"].zero_()
    moments = [tensor for state in optimiser.state.values() for tensor in state.values()]
    averages = [] if stepper.averaged is None else _floats(stepper.averaged)
    return [*model.parameters(), *model.buffers(), *moments, *averages]
