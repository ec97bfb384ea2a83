"""Batch norm's statistics, recomputed on a set of images."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def recompute_statistics(model: nn.Module, images: Tensor, batch_size: int) -> None:
    """Set batch norm's statistics to the means over whole batches of images (uint8 [N, C, H, W]).

    The rest of the model is put into evaluation mode, so that no equilibrium's W changes.
    """
    norms = [module for module in model.eval().modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().reset_running_stats()
        norm.momentum = None  # the mean over batches
    for part in images.split(batch_size):
        if len(part) == batch_size:
            model(part.float() / 255)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
