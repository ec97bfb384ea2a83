"""Branch and bound of what the stages before it left open, one image at a time."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import cerdeq
from baselines import DATASETS
from cerdeq import LinfBall, margin_spec
from harness.attacks.pgd import margins
from harness.config.settings import BAB
from harness.config.trial import TrialConfig
from harness.evaluation.ledger import Ledger
from harness.storage import names

_CERTIFIED, _ATTACKED, _UNKNOWN = "certified", "attacked", "unknown"  # what cerdeq.verify calls them
_ENDED = {"timeout": names.TIMEOUT, "out of memory": names.OUT_OF_MEMORY}  # before it was done


@dataclass(frozen=True)
class Branched:
    """What branch and bound found of B examples; each [B], not a number where it was not asked or found none.

    least: the lower bound of the least margin. branches: how many it took.
    attacked: the float64 network's margin at a counterexample.
    """

    least: Tensor
    branches: Tensor
    attacked: Tensor


def branch_and_bound(
    model: nn.Module, x: Tensor, labels: Tensor, config: TrialConfig, ledger: Ledger, known: Tensor
) -> Branched:
    """Ask branch and bound of each open example of x [B, C, H, W] that is `known` [B], and enter what it says."""
    found = Branched(*torch.full((3, len(labels)), torch.nan, dtype=torch.float64, device=x.device))
    for example in (known & ledger.open.to(x.device)).nonzero():
        for place, answer in ledger.answers(BAB, partial(_verified, model, x, labels, config), example):
            status, found.least[place], found.branches[place], found.attacked[place] = answer
            if status in _ENDED:
                ledger.note(BAB, _ENDED[status], int(place))
    ledger.decide(BAB, names.CERTIFIED, found.least > 0)
    ledger.decide(BAB, names.ATTACKED, found.attacked < 0)
    return found


def _verified(
    model: nn.Module, x: Tensor, labels: Tensor, config: TrialConfig, example: Tensor
) -> tuple[str, float, float, float]:
    """Status, least margin, branches and margin at the counterexample (or NaN) of one example, given as [1].

    Raises ValueError where these do not agree.
    """
    image, settings = x[example], config.evaluation
    spec = margin_spec(labels[example], DATASETS[config.dataset].classes).to(x)
    region, budget = LinfBall(image, config.eps), {"seconds": settings.bab_seconds, "branches": settings.bab_branches}
    answer = cerdeq.verify(model, region, spec, **budget)  # type: ignore[attr-defined]
    status, least = answer.status[0], float(answer.lower[0].amin())
    broken = torch.nan
    if status == _ATTACKED:
        broken = _exact_margin(model, answer.counterexample, image, labels[example], float(config.eps))
    open_ = status in (_UNKNOWN, *_ENDED) and not least > 0
    if not {_CERTIFIED: least > 0, _ATTACKED: broken < 0}.get(status, open_):
        raise ValueError(f"branch and bound says {status}, with a bound of {least:g} and a margin of {broken:g}")
    return status, least, float(answer.branches[0]), broken


def _exact_margin(model: nn.Module, point: Tensor, image: Tensor, label: Tensor, eps: float) -> float:
    """The float64 network's margin at a point that is moved into the exact ball."""
    point = torch.minimum(torch.maximum(point.to(image), image - eps), image + eps).clamp(0, 1)
    with torch.no_grad():
        return float(margins(model(point), label))
