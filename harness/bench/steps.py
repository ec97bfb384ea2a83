"""The section `steps`: training steps of every kind, beside plain training of the same network.

Products are in TF32 on a GPU, as the recipes say, and in float32 on a CPU; in bf16 where a row says so.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from baselines import DATASETS, build
from harness.bench.auto_lirpa_step import auto_lirpa_step
from harness.common.radius import Radius
from harness.config.training import Training
from harness.data.augment import augment, draw
from harness.machine.device import tf32, without_faulty_onednn
from harness.machine.freed_memory import reuse_freed_memory
from harness.methods import make_teacher, method_options
from harness.settings import Precision, Recipe
from harness.training.initialise import initialise
from harness.training.step import Stepper, image_layout, make_optimiser

K = TypeVar("K")
Step = Callable[[], object]


@dataclass(frozen=True)
class StepKind:
    """A kind of step. method, options: of training; the method is empty for torch's own step without bounds.

    by_auto_lirpa: whether auto_LiRPA bounds, if it can be imported.
    """

    method: str
    options: dict[str, Any]
    precision: Precision = "tf32"
    compiled: bool = False
    by_auto_lirpa: bool = False


PLAIN = "plain eager"
"""The kind that all others are compared with."""
_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("", {}),
    "ibp": ("ibp", {}),
    "crown-ibp": ("crown-ibp", {}),
    "crown-ibp unfused": ("crown-ibp", {"loss_fusion": False}),
}
_PRECISIONS: dict[str, Precision] = {"": "tf32", " bf16": "bf16"}
KINDS = {
    f"{title}{suffix} {ending}": StepKind(method, options, precision, compiled)
    for ending, compiled in (("eager", False), ("compiled", True))
    for suffix, precision in _PRECISIONS.items()
    for title, (method, options) in _METHODS.items()
}
_ATTACKING = ("sabr", "mtl-ibp", "cc-ibp", "exp-ibp", "cc-dist", "ad-cert", "pgd")
KINDS |= {f"{method} eager": StepKind(method, {}) for method in _ATTACKING}
KINDS |= {
    f"{title} auto_LiRPA": StepKind(*_METHODS[title], by_auto_lirpa=True) for title in ("ibp", "crown-ibp unfused")
}
"""All kinds, by name. Whole steps are captured in a CUDA graph on a GPU, compiled or not; torch's own are not."""
_EPS, _RATE = 0.01, 5e-4
_IMAGES = 4096
_WARM_UP = 2  # rounds that are not counted
_PRODUCTS = ("conv", "mm", "linear", "gemm", "cudnn", "xmma", "cutlass")
_REST = ("adam", "vector_norm", "foreach", "multi_tensor_apply", "memcpy", "memset", "profilerstep")
_FUSED = ("triton_poi", "triton_per", "triton_red")  # element-wise; their names list the products around them
PRODUCTS, ELEMENT_WISE, REST = "products %", "element-wise %", "rest %"


def measure_steps(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each kind of step in `options.kinds` of each network."""
    networks, rows = TimedNetworks(options, device), []
    with reuse_freed_memory():
        for name in options.models:
            steps = {kind: networks.step(name, KINDS[kind]) for kind in options.kinds}
            with tf32(device, enabled=True):
                median_seconds(steps, _WARM_UP, device)
                medians = median_seconds(steps, options.rounds, device)
                shares = {kind: shares_of_time(step, device) for kind, step in steps.items()}
            for kind, seconds in medians.items():
                speed, cost = options.batch_size / seconds, seconds / medians[PLAIN]
                numbers = {"ms": 1000 * seconds, "examples/s": speed, "cost over plain": cost}
                rows.append({"network": name, "step": kind, **numbers, **shares[kind]})
    return rows


def shares_of_time(step: Step, device: torch.device) -> dict[str, float]:
    """Return the percentages of a step's time that products, element-wise work and the rest take.

    Products are convolutions and matrix products; element-wise work is torch's other operators and compiled loops; the
    rest is the optimiser, the clipping of gradients, copies from the host, and Python.
    """
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        total = seconds_of(step, device)
    seconds = {PRODUCTS: 0.0, ELEMENT_WISE: 0.0}
    for event in profiler.key_averages():
        own = (event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total) / 1e6
        is_work = device.type == "cuda" or event.key.startswith(("aten::", "## Call CompiledFxGraph"))
        if is_work and (part := part_of(event.key)) != REST:
            seconds[part] += own
    shares = {name: 100 * value / total for name, value in seconds.items()}
    return shares | {REST: 100 - sum(shares.values())}


def part_of(kernel: str) -> str:
    """Return which part of a step a kernel or an operator belongs to, by its name."""
    name = kernel.lower()
    if any(word in name for word in _REST):
        return REST
    is_product = any(word in name for word in _PRODUCTS) and not name.startswith(_FUSED) and "bn_" not in name
    return PRODUCTS if is_product else ELEMENT_WISE


def median_seconds(steps: dict[K, Step], rounds: int, device: torch.device) -> dict[K, float]:
    """Return the median seconds of each step. Steps take turns, so that a drift of the machine slows all alike."""
    seconds: dict[K, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(seconds_of(step, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Return how long an action takes, until the device has done all of it."""
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


class TimedNetworks:
    """Networks of one width, and a batch of random images and labels, on one device."""

    def __init__(self, options: argparse.Namespace, device: torch.device):
        self.options, self.device = options, device
        dataset = DATASETS[options.dataset]
        generator = torch.Generator().manual_seed(0)
        shape = (_IMAGES, *dataset.shape)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        self.labels = torch.randint(0, dataset.classes, (_IMAGES,), generator=generator).to(device)
        self.batch = draw(_IMAGES, dataset.crop_padding, dataset.flip, 0, 1, device).batch(0, options.batch_size)

    def step(self, name: str, kind: StepKind) -> Step:
        """Return a step of one kind of the network called `name`."""
        if not kind.method:
            return self._plain_step(name, kind)
        if kind.by_auto_lirpa:
            data = self.images, self.labels, DATASETS[self.options.dataset].classes
            return auto_lirpa_step(self._model(name), kind.method, *data, _EPS, _RATE, self.batch)
        return partial(self.stepper(name, kind), self.batch, _EPS, _RATE)

    def stepper(self, name: str, kind: StepKind) -> Stepper:
        """Return a Stepper of the network called `name`; on a GPU it captures its steps in a CUDA graph."""
        train = Recipe(batch_size=self.options.batch_size, precision=kind.precision, eps=Radius("8/255"))
        config = Training(
            dataset=self.options.dataset, seed=0, model=name, method=kind.method, method_options=kind.options,
            width=self.options.width, train=train,
        )  # fmt: skip
        teacher = make_teacher(self._model(name)) if "teacher" in method_options(kind.method) else None
        return Stepper(config, self._model(name), self.images, self.labels, kind.compiled, teacher=teacher)

    def _plain_step(self, name: str, kind: StepKind) -> Step:
        """Return torch's own step: forward pass, cross entropy and Adam; never captured in a CUDA graph."""
        model = self._model(name)
        optimiser = make_optimiser(model, self.device)
        forward = torch.compile(model, dynamic=False) if kind.compiled else model

        def step() -> None:
            x = augment(self.images, *self.batch).contiguous(memory_format=image_layout(model))
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=kind.precision == "bf16"):
                logits = forward(x)
            with without_faulty_onednn(model):
                F.cross_entropy(logits.float(), self.labels[self.batch[0]]).backward()
            optimiser.step()

        return step

    def _model(self, name: str) -> nn.Sequential:
        torch.manual_seed(0)
        model = build(name, self.options.dataset, self.options.width)
        initialise(model)
        return model.to(self.device).to(memory_format=torch.channels_last).train()
