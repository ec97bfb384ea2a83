"""Adversarial images: those of the entry are replayed, others are searched."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch

from harness.attacks.counterexamples import decode, encode
from harness.attacks.pgd import worst_point
from harness.common import names
from harness.common.errors import InputError, shorten
from harness.entries.checked import SHARE, CheckedNetwork, Outcome, Tensors, describe_hits
from harness.entries.files import OutOfTimeError, limits
from harness.evaluation.attack import margins_at
from harness.settings import EvaluationSettings

QUICK = EvaluationSettings(attack="margin", attack_restarts=1)
FULL = EvaluationSettings(attack_restarts=1)
_BATCH = 100  # images


class NotAdversarialError(InputError):
    """An image that was sent in refutes no claim: a wrong request, no fault of the entry."""


def check_witnesses(networks: Sequence[CheckedNetwork]) -> Outcome:
    """Replay the adversarial image of each falsified image."""
    for each in networks:
        witnesses, falsified = each.tensors(each.entry.witnesses), each.numbers(names.FALSIFIED)
        if strays := sorted(witnesses.keys() - set(map(str, falsified))):
            raise InputError(f"{each.entry.witnesses}: found {shorten(strays[0])}, allowed: falsified images")
        for index in falsified:
            if why := each.why_not_adversarial(index, witnesses.get(str(index))):
                raise InputError(f"image {index} is falsified, but its witness is refused: {why}")
    count = sum(len(each.numbers(names.FALSIFIED)) for each in networks)
    return True, f"{count} adversarial images lie in their box and are misclassified"


def check_attack(networks: Sequence[CheckedNetwork], earlier: Tensors, sent: Tensors, seconds: float) -> Outcome:
    """Replay adversarial images of earlier checks and those that were sent in, then search others.

    Raises NotAdversarialError for one that was sent in and refutes no claim.
    """
    for key, point in (earlier | sent).items():
        why = _replay(networks, key, point)
        if why and key in sent:
            raise NotAdversarialError(f"--witness: image {shorten(key)}: {why}")
    attacked = _search(networks, seconds)
    for each in networks:
        each.record.checked.attack_error = each.percent(each.wrong)
    if refuted := describe_hits(networks):
        return False, f"refuted: {refuted}"
    claims = sum(each.record.claimed for each in networks)
    kinds = f"{attacked[QUICK]} by PGD on the margin, {attacked[FULL]} of these by PGD on all objectives"
    message = f"of {claims} claimed images {kinds}: no adversarial image"
    return (True if attacked[QUICK] == claims else None), message


def _replay(networks: Sequence[CheckedNetwork], key: str, point: np.ndarray) -> str:
    """Add an image, "<seed>/<image>", to the hits of its network; return why it is none, or ""."""
    seed, _, number = key.partition("/")
    for each in networks:
        for index in each.claims:
            if (str(each.entry.seed), str(index)) == (seed, number):
                why = each.why_not_adversarial(index, point)
                each.hits |= {} if why else {number: point}
                return why
    return f"no image {shorten(key)} (seed/image) is claimed to be certified"


def _search(networks: Sequence[CheckedNetwork], seconds: float) -> dict[object, int]:
    """Attack until the first hit or most of the time is over; return how many images each attack was tried on."""
    attacked = dict[object, int]({QUICK: 0, FULL: 0})
    with suppress(OutOfTimeError), limits(SHARE * seconds):
        for settings in (QUICK, FULL):
            for each in networks:
                for count, hits in attack(each, settings):
                    attacked[settings] += count
                    each.hits |= hits
                    if any(other.hits for other in networks):
                        return attacked
    return attacked


def attack(each: CheckedNetwork, settings: EvaluationSettings) -> Iterator[tuple[int, Tensors]]:
    """Attack claimed images by PGD, some at a time; yield how many were attacked, and the adversarial ones by image.

    These are float64, lie in the exact box and are proved to be misclassified. Raises InputError where the runtime's
    logits at a point are not the network's in float64.
    """
    for start in range(0, len(each.claims), _BATCH):
        numbers = torch.tensor(each.claims[start : start + _BATCH])
        x, labels = each.images.images[numbers].double() / 255, each.images.labels[numbers]
        points = worst_point(each.network.prepared.attack_model, x.float(), labels, each.eps, settings, 0, numbers)
        inside = decode(encode(points, x, each.eps), x, each.eps)
        each.network.logits(inside)
        hits = (margins_at(each.network.prepared, inside, labels) < 0).nonzero()[:, 0].tolist()
        yield len(numbers), {str(int(numbers[hit])): inside[hit].numpy() for hit in hits}
