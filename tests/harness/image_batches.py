"""Batches of random images, for losses in float64."""

import dataclasses

import torch
from torch import nn

from cerdeq.bounds import Program
from harness.methods import Batch, make_teacher

EPS = 0.05


def batch_of(images: int = 12, progress: float = 0.5) -> Batch:
    x, labels = torch.rand(images, 1, 8, 8).double(), torch.randint(0, 10, (images,))
    return Batch(x, labels, 10, torch.tensor(EPS, dtype=torch.float64), torch.tensor(progress))


def with_adversary(method, program: Program, batch: Batch) -> Batch:
    """The batch with what the method's attack finds; a distilling one has a teacher with as many features."""
    if not hasattr(method, "teacher"):
        return dataclasses.replace(batch, adversary=method.attack(program, batch))
    width = program.steps[-1].target.in_features
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, batch.classes))
    batch = dataclasses.replace(batch, teacher=make_teacher(teacher.double()))
    return dataclasses.replace(batch, adversary=method.attack(program, batch))
