"""The tree of a search: each node is its parent's box with one more assumption, tightened by steps of multipliers."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cerdeq.equilibrium.monotone.bounds import TighteningStep

NODES, ROWS, MULTIPLIERS, SCALES, BETAS, EXACT = "nodes", "rows", "multipliers", "scales", "betas", "exact"
PREFIX = "equilibrium/"


@dataclass
class Node:
    """One leaf.

    parent: its number, -1 of the root. row: the row of the spec that is assumed not to be positive, -1 of the root.
    unit, sign: the split that made it, -1 and 0 where there was none: z_unit = q_unit >= 0 (1) or q_unit <= 0 (-1).
    steps: those that tightened it.
    """

    parent: int
    row: int
    unit: int
    sign: int
    steps: list[TighteningStep] = field(default_factory=list)


def certificate(nodes: list[Node]) -> dict[str, Tensor]:
    """Return the tensors of a tree; docs/certificates.md describes them."""
    tree = torch.tensor([[node.parent, node.row, node.unit, node.sign] for node in nodes], dtype=torch.int32)
    parts, multipliers, scales, betas, exact = [], [], [], [], []
    for number, node in enumerate(nodes):
        for order, step in enumerate(node.steps):
            place = torch.tensor([number, order]).expand(len(step.units), 2)
            parts.append(torch.cat([place, step.units.cpu()[:, None], step.signs.cpu()[:, None]], dim=1).int())
            multipliers.append(torch.zeros_like(step.multipliers).half() if step.is_exact else step.multipliers)
            scales.append(torch.zeros_like(step.scales) if step.is_exact else step.scales)
            betas.append(step.betas)
            if step.is_exact:
                exact.append(step.multipliers)
    if not parts:
        return {}
    none = multipliers[0].new_zeros(0, multipliers[0].shape[1]).double()
    tensors = {
        NODES: tree, ROWS: torch.cat(parts), MULTIPLIERS: torch.cat(multipliers), SCALES: torch.cat(scales).float(),
        BETAS: torch.cat(betas).float(), EXACT: torch.cat([none, *exact]),
    }  # fmt: skip
    return {PREFIX + name: tensor.cpu() for name, tensor in tensors.items()}
