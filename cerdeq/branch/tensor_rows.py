"""Dataclasses of tensors that have a row for each of D things, such as leaves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorRows:
    """The base of these dataclasses: every field is a tensor [D, ...]."""

    def of(self: "Rows", numbers: Tensor | slice) -> "Rows":
        """Return the rows with these numbers, in this order."""
        return replace(self, **{name: tensor[numbers] for name, tensor in vars(self).items()})


Rows = TypeVar("Rows", bound=TensorRows)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Return all rows of the parts."""
    return replace(parts[0], **{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})
