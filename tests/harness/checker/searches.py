"""Provides certificates of cerdeq's searches, and what the checker proves by them."""

import numpy as np
import torch

from cerdeq import verify
from harness.checker.bounds.boxes import Box
from harness.checker.bounds.network import read_network
from harness.checker.proofs.example import prove_rows


def searched(model, region, spec=None, seconds=None, branches=None):
    """Return the result of a search for rows [K, N] of the outputs, and its certificate. By default: the only one."""
    rows = torch.ones(1, 1) if spec is None else spec
    result = verify(model, region, rows.to(region.center)[None], seconds, branches, certificates=True)
    return result, {name: tensor.numpy() for name, tensor in result.certificates[0].items()}


def checked(model, region, tensors=None, spec=None):
    """Return the checker's proof of rows [K, N] of the outputs. By default: the only one."""
    box = Box(region.center.numpy(), region.radius.numpy())
    return prove_rows(read_network(model), box, np.ones((1, 1)) if spec is None else spec, tensors)
