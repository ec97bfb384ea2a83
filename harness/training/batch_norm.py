"""Batch norm's running statistics as those of given images."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def recompute_statistics(model: nn.Module, images: Tensor, batch_size: int) -> None:
    """They become the means over batches of images (uint8 [N, C, H, W]), a last partial batch left out.

    All else is as in evaluation, where the model is left but for batch norm, so that no equilibrium's W moves.
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
