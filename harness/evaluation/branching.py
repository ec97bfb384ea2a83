"""Branch and bound of what the stages before it left open, one image at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import cerdeq
from baselines import DATASETS
from cerdeq import LinfBall, margin_spec
from harness.attacks.counterexamples import decode, encode
from harness.config.settings import BAB
from harness.config.trial import TrialConfig
from harness.evaluation.evidence import Evidence
from harness.evaluation.ledger import Ledger
from harness.storage import names

_CERTIFIED, _ATTACKED, _UNKNOWN = "certified", "falsified", "unknown"  # statuses of cerdeq.verify
_AFTERWARDS = "certificates"  # what the seconds spent on keeping proofs are called
_ENDED = {"timeout": names.TIMEOUT, "out of memory": names.OUT_OF_MEMORY}  # before it was done

Margins = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Branched:
    """What branch and bound found of B examples; each [B], not a number where it was not asked or found none.

    least: the lower bound of the least margin. branches: how many it took.
    attacked: the proved upper bound of the margin at a counterexample.
    evidence: counterexamples and, where they are wanted, certificates.
    """

    least: Tensor
    branches: Tensor
    attacked: Tensor
    evidence: Evidence


def branch_and_bound(
    model: nn.Module, margins_at: Margins, first: int, x: Tensor, labels: Tensor, config: TrialConfig, ledger: Ledger,
    known: Tensor,
) -> Branched:  # fmt: skip
    """Ask branch and bound of each open example of x [B, C, H, W] that is `known` [B], and enter what it says.

    first: the number of the first example. margins_at: (points, labels) to the network's least margins, proved where
    they are below 0.
    """
    least, branches, attacked = torch.full((3, len(labels)), torch.nan, dtype=torch.float64, device=x.device)
    found = Branched(least, branches, attacked, {})
    for example in (known & ledger.open.to(x.device, non_blocking=True)).nonzero():
        for place, answer in ledger.answers(BAB, partial(_verified, model, margins_at, x, labels, config), example):
            status, found.least[place], found.branches[place], found.attacked[place], evidence = answer
            found.evidence.update({f"{first + int(place)}{name}": tensor for name, tensor in evidence.items()})
            if status in _ENDED:
                ledger.note(BAB, _ENDED[status], int(place))
    ledger.decide(BAB, names.CERTIFIED, found.least > 0)
    ledger.decide(BAB, names.ATTACKED, found.attacked < 0)
    return found


def certificates(
    model: nn.Module, first: int, which: Tensor, x: Tensor, labels: Tensor, config: TrialConfig, ledger: Ledger
) -> Evidence:
    """Certificates of examples `which` [B] that a search proved without keeping one; of some there may be none."""
    found: Evidence = {}
    for example in which.to(x.device).nonzero():
        for place, answer in ledger.answers(_AFTERWARDS, partial(_asked, model, x, labels, config), example):
            named = answer.certificates[0].items()
            found |= {f"{first + int(place)}/{name}": tensor for name, tensor in named}
    return found


def _asked(
    model: nn.Module, x: Tensor, labels: Tensor, config: TrialConfig, example: Tensor
) -> cerdeq.Verification:  # fmt: skip
    """What branch and bound says of an example, given as [1]."""
    settings, region = config.evaluation, LinfBall(x[example], config.eps)
    spec = margin_spec(labels[example], DATASETS[config.dataset].classes).to(x)
    budget = settings.bab_seconds, settings.bab_branches
    return cerdeq.verify(model, region, spec, *budget, certificates=settings.certificates)


def _verified(
    model: nn.Module, margins_at: Margins, x: Tensor, labels: Tensor, config: TrialConfig, example: Tensor
) -> tuple[str, float, float, float, Evidence]:
    """Of an example, given as [1]: status, least margin, branches, margin at its counterexample, and evidence, called
    by what follows the example's number.

    Raises ValueError where these do not agree.
    """
    image, answer = x[example], _asked(model, x, labels, config, example)
    status, least = answer.status[0], float(answer.lower[0].amin())
    broken, evidence = torch.nan, {f"/{name}": tensor for name, tensor in answer.certificates[0].items()}
    if status == _ATTACKED:
        kept = encode(answer.counterexample.to(image), image, config.eps)
        broken, evidence[""] = float(margins_at(decode(kept, image, config.eps), labels[example])), kept[0].cpu()
    open_ = status in (_UNKNOWN, *_ENDED) and not least > 0
    if not {_CERTIFIED: least > 0, _ATTACKED: broken < 0}.get(status, open_):
        raise ValueError(f"branch and bound says {status}, with a bound of {least:g} and a margin of {broken:g}")
    return status, least, float(answer.branches[0]), broken, evidence
