"""The objectives of attacks: functions of logits that rise as the network comes to err."""

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of logits [B, K], labels [B] and the other classes [B, K - 1], as `rank_classes` orders them, to [B]."""


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the label's logit minus the largest other one: [B]."""
    true, others = _split_logits(logits, labels)
    return true - others.amax(1)


def rank_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the classes other than the labels, [B, K - 1], by falling logits [B, K]."""
    return _split_logits(logits, labels)[1].argsort(dim=1, descending=True, stable=True)[:, :-1]


def objectives(attack: str, classes: int) -> list[Objective]:
    """Return the objectives of an attack by the name of the setting `attack`, in their order."""
    if attack == "margin":
        return [_margin]
    return [_margin, _cross_entropy, *(_towards(rank) for rank in range(classes - 1))]


def _margin(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    return -margins(logits, labels)


def _cross_entropy(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Return log(e^loss - 1), which rises with cross entropy; its gradient does not vanish at confident predictions."""
    true, rest = _split_logits(logits, labels)
    return rest.logsumexp(1) - true


def _towards(rank: int) -> Objective:
    """Return the objective of the margin against the class of this rank among the others."""

    def objective(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
        return (logits.gather(1, others[:, rank, None]) - logits.gather(1, labels[:, None])).squeeze(1)

    return objective


def _split_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labels' logits [B], and all logits [B, K] with -inf at the labels."""
    return logits.gather(1, labels[:, None]).squeeze(1), logits.scatter(1, labels[:, None], -torch.inf)
