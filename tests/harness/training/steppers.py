"""A trial's training step on its data, outside the loop."""

import copy

import torch

from baselines import build
from harness.data import load
from harness.training.augment import draw
from harness.training.initialise import initialise
from harness.training.step import Stepper, make_optimiser

BOUNDING = [("ibp", {}), ("crown-ibp", {}), ("crown-ibp", {"loss_fusion": False})]  # methods and their options


def stepper_of(config, device: str = "cpu", averaged: bool = False, **options) -> Stepper:
    data = load(config.dataset)
    torch.manual_seed(0)
    model = build(config.model, config.dataset, config.width, **config.options)
    initialise(model)
    model.to(device, memory_format=torch.channels_last).train()
    mean = copy.deepcopy(model) if averaged else None
    optimiser = make_optimiser(model, torch.device(device))
    images, labels = data.train.images.to(device), data.train.labels.to(device)
    return Stepper(config, model, optimiser, images, labels, mean, **options)


def take_steps(stepper: Stepper, count: int, batch: int) -> torch.Tensor:
    draws = draw(len(stepper.images), 2, True, 0, 1, stepper.images.device)
    return torch.stack([stepper(draws.batch(batch * i, batch), 0.01 * i + 1e-6, 5e-4) for i in range(count)])
