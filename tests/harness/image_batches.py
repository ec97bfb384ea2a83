"""Batches of random images, for losses in float64."""

import torch

from harness.methods import Batch

EPS = 0.05


def batch_of(images: int = 12, progress: float = 0.5) -> Batch:
    x, labels = torch.rand(images, 1, 8, 8).double(), torch.randint(0, 10, (images,))
    return Batch(x, labels, 10, torch.tensor(EPS, dtype=torch.float64), torch.tensor(progress))
