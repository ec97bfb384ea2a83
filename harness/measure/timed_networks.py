"""Training steps to be timed: of networks of one size, all on the same batch."""

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
from harness.device import without_faulty_onednn
from harness.training.augment import augment, draw
from harness.training.initialise import initialise
from harness.training.step import Stepper, make_optimiser

Step = Callable[[], object]

_EPS, _RATE = 0.01, 5e-4
_IMAGES = 4096


class TimedNetworks:
    """Networks of one width, and random images and labels, on one device."""

    def __init__(self, options: argparse.Namespace, device: torch.device):
        self.options, self.device = options, device
        dataset = DATASETS[options.dataset]
        generator = torch.Generator().manual_seed(0)
        shape = (_IMAGES, *dataset.shape)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        self.labels = torch.randint(0, dataset.classes, (_IMAGES,), generator=generator).to(device)
        self.batch = draw(_IMAGES, dataset.crop_padding, dataset.flip, 0, 1, device).batch(0, options.batch_size)

    def plain_step(self, name: str, precision: str = "float32", compiled: bool = False) -> Step:
        """Return torch's own step: forward pass, cross entropy and Adam; never captured in a CUDA graph."""
        model = self._model(name)
        optimiser = make_optimiser(model, self.device)
        forward = torch.compile(model, dynamic=False) if compiled else model

        def step() -> None:
            x = augment(self.images, *self.batch).contiguous(memory_format=torch.channels_last)
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = forward(x)
            with without_faulty_onednn(model):
                F.cross_entropy(logits.float(), self.labels[self.batch[0]]).backward()
            optimiser.step()

        return step

    def step(
        self, name: str, method: str, options: dict[str, Any], precision: str = "float32", compiled: bool = False
    ) -> Step:
        """Return the harness's step; captured in a CUDA graph on a GPU."""
        return partial(self._stepper(name, method, options, precision, compiled), self.batch, _EPS, _RATE)

    def eager_step(self, name: str, method: str, options: dict[str, Any]) -> Step:
        """Return the harness's step, neither compiled nor captured."""
        return partial(self._stepper(name, method, options, "float32", False).eager, self.batch, method)

    def _model(self, name: str) -> nn.Sequential:
        torch.manual_seed(0)
        model = build(name, self.options.dataset, self.options.width)
        initialise(model)
        return model.to(self.device).to(memory_format=torch.channels_last).train()

    def _stepper(self, name: str, method: str, options: dict[str, Any], precision: str, compiled: bool) -> Stepper:
        train = TrainSettings(batch_size=self.options.batch_size, precision=precision)  # type: ignore[arg-type]
        config = TrialConfig(
            "benchmark", "full", self.options.dataset, Radius("8/255"), 0, name, method, {}, options,
            self.options.width, train=train,
        )  # fmt: skip
        model = self._model(name)
        optimiser = make_optimiser(model, self.device)
        return Stepper(config, model, optimiser, self.images, self.labels, compiled=compiled)
