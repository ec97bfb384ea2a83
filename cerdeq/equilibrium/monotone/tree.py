"""The tree of a search: each node a leaf of its parent with one more assumption, tightened by steps of multipliers.

As a certificate it is checked from the root down: the root is the first box, a node's steps tighten its box in turn,
and a node is closed when a step refutes it or both of its halves are closed.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cerdeq.equilibrium.monotone.bounds import Step

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
    steps: list[Step] = field(default_factory=list)


def certificate(nodes: list[Node]) -> dict[str, Tensor]:
    """Return the tensors of a tree.

    nodes: int32 [M, 4]: parent, row, unit, sign. rows: int32 [T, 4]: node, number of the step in it, unit, sign.
    multipliers, float16 [T, N], scales, float32 [T]: their products are (1 - w) a. betas: float32 [T]. exact: float64
    [E, N]: the multipliers of the rows whose scale is 0, in their order.
    """
    tree = torch.tensor([[node.parent, node.row, node.unit, node.sign] for node in nodes], dtype=torch.int32)
    parts, multipliers, scales, betas, exact = [], [], [], [], []
    for number, node in enumerate(nodes):
        for order, step in enumerate(node.steps):
            place = torch.tensor([number, order]).expand(len(step.units), 2)
            parts.append(torch.cat([place, step.units.cpu()[:, None], step.signs.cpu()[:, None]], dim=1).int())
            is_rounded = step.multipliers.dtype == torch.float16
            multipliers.append(step.multipliers if is_rounded else torch.zeros_like(step.multipliers).half())
            scales.append(step.scales if is_rounded else torch.zeros_like(step.scales))
            betas.append(step.betas)
            if not is_rounded:
                exact.append(step.multipliers)
    if not parts:
        return {}
    none = multipliers[0].new_zeros(0, multipliers[0].shape[1]).double()
    tensors = {
        NODES: tree, ROWS: torch.cat(parts), MULTIPLIERS: torch.cat(multipliers), SCALES: torch.cat(scales).float(),
        BETAS: torch.cat(betas).float(), EXACT: torch.cat([none, *exact]),
    }  # fmt: skip
    return {PREFIX + name: tensor.cpu() for name, tensor in tensors.items()}
