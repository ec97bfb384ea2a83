"""Training steps to be timed: every kind on a network of its own, all on the same batch."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from baselines import DATASETS, build
from harness.config.settings import Radius, TrainSettings
from harness.config.trial import TrialConfig
from harness.device import whole_gradients
from harness.training.augment import augmented, draw
from harness.training.initialise import initialise
from harness.training.step import Stepper, make_optimiser

EPS, RATE = 0.01, 5e-4
_IMAGES = 4096


class Bench:
    """Networks, images and labels of one size, on one device."""

    def __init__(self, options: argparse.Namespace, device: torch.device):
        self.options, self.device = options, device
        self.info = DATASETS[options.dataset]
        generator = torch.Generator().manual_seed(0)
        shape = (_IMAGES, *self.info.shape)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        self.labels = torch.randint(0, self.info.classes, (_IMAGES,), generator=generator).to(device)
        draws = draw(_IMAGES, self.info.crop_padding, self.info.flip, 0, 1, device)
        self.choices = draws.batch(0, options.batch_size)

    def model(self, name: str, **network_options: Any) -> nn.Sequential:
        """A network as training begins with it."""
        torch.manual_seed(0)
        model = build(name, self.options.dataset, self.options.width, **network_options)
        initialise(model)
        return model.to(self.device).to(memory_format=torch.channels_last).train()

    def plain(
        self, name: str, precision: str = "float32", compiled: bool = False, **network_options: Any
    ) -> Callable[[], object]:
        """torch's own forward pass, cross entropy and Adam; compiled or not, never captured."""
        model = self.model(name, **network_options)
        optimiser = make_optimiser(model, self.device)
        forward = torch.compile(model, dynamic=False) if compiled else model

        def step() -> None:
            x = augmented(self.images, *self.choices).contiguous(memory_format=torch.channels_last)
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = forward(x)
            with whole_gradients(model):
                F.cross_entropy(logits.float(), self.labels[self.choices[0]]).backward()
            optimiser.step()

        return step

    def step(
        self, name: str, method: str, method_options: dict[str, Any], precision: str = "float32",
        compiled: bool = False, **network_options: Any,
    ) -> Callable[[], object]:  # fmt: skip
        """The harness's own, compiled or not; captured in a CUDA graph on a GPU."""
        stepper = self._stepper(name, method, method_options, precision, compiled, network_options)
        return partial(stepper, self.choices, EPS, RATE)

    def uncaptured(self, name: str, method: str, method_options: dict[str, Any]) -> Callable[[], object]:
        """The harness's own, neither compiled nor captured."""
        stepper = self._stepper(name, method, method_options, "float32", False, {})
        return partial(stepper.eager, self.choices, method)

    def _stepper(
        self, name: str, method: str, method_options: dict[str, Any], precision: str, compiled: bool,
        network_options: dict[str, Any],
    ) -> Stepper:  # fmt: skip
        config = TrialConfig(
            "benchmark", "full", self.options.dataset, Radius("8/255"), 0, name, method, network_options,
            method_options, self.options.width,
            train=TrainSettings(batch_size=self.options.batch_size, precision=precision),
        )  # fmt: skip
        model = self.model(name, **network_options)
        optimiser = make_optimiser(model, self.device)
        return Stepper(config, model, optimiser, self.images, self.labels, compiled=compiled)
