"""What an attack climbs: functions of logits that are above 0, or rise, as the network errs."""

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of logits [B, K], labels [B] and the other classes [B, K - 1] in the order that `ranked` gives: [B]."""


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The true class's logit minus the largest other one: [B]."""
    true, others = _apart(logits, labels)
    return true - others.amax(1)


def ranked(logits: Tensor, labels: Tensor) -> Tensor:
    """The classes other than the labels, [B, K - 1], those of the largest logits [B, K] first."""
    return _apart(logits, labels)[1].argsort(dim=1, descending=True, stable=True)[:, :-1]


def objectives(attack: str, classes: int) -> list[Objective]:
    """Those of an attack by its name in harness.config.settings.ATTACKS, in the order they are climbed."""
    if attack == "margin":
        return [_margin]
    return [_margin, _cross_entropy, *(_towards(rank) for rank in range(classes - 1))]


def _margin(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    return -margins(logits, labels)


def _cross_entropy(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """log(e^loss - 1): climbs as cross entropy does, with a gradient that does not vanish where the network is sure."""
    true, rest = _apart(logits, labels)
    return rest.logsumexp(1) - true


def _towards(rank: int) -> Objective:
    """The margin against one class, the one with so many others above it."""

    def objective(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
        return (logits.gather(1, others[:, rank, None]) - logits.gather(1, labels[:, None])).squeeze(1)

    return objective


def _apart(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The true logits [B], and all of them with -inf in those places [B, K]."""
    return logits.gather(1, labels[:, None]).squeeze(1), logits.scatter(1, labels[:, None], -torch.inf)
