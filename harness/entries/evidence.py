"""What speaks for and against claims: adversarial images, an attack, proofs of a sample."""

import hashlib
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import torch

from cerdeq import LinfBall, margin_spec, verify
from cerdeq.bounds import UnsupportedOperator
from harness.attacks.counterexamples import decode, encode
from harness.attacks.pgd import worst_point
from harness.common.rounding import round_up
from harness.data import Split
from harness.entries.files import OutOfTimeError, limits
from harness.entries.network import LoadedNetwork
from harness.evaluation.attack import margins_at
from harness.settings import EvaluationSettings, Radius

Tensors = dict[str, np.ndarray]
Prove = Callable[[np.ndarray, int, Tensors | None], tuple[bool, str]]
"""Grey levels [C, H, W], label, certificate -> whether all margins are proved over the ball, and why not."""

SAMPLE = 300
"""Images whose proofs are checked. If a hundredth of the claims is false, all are proved with probability 0.05."""
QUICK = EvaluationSettings(attack="margin", attack_restarts=1)
FULL = EvaluationSettings(attack_restarts=1)
_IMAGE_SECONDS = 60.0
_BATCH = 100  # images


def in_random_order(indices: list[int], manifest: str, nonce: str, seed: int) -> list[int]:
    """Return image numbers in the order of SHA-256 of "<SHA-256 of the manifest> <nonce> <seed> <image>"."""
    return sorted(indices, key=lambda n: hashlib.sha256(f"{manifest} {nonce} {seed} {n}".encode()).digest())


def box_ends(eps: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest float64 within eps of each grey level / 255 and within [0, 1], [256] each."""
    levels = [Fraction(level, 255) for level in range(256)]
    low = [round_up(max(Fraction(0), level - eps), np.float64) for level in levels]
    return np.array(low), np.array([-round_up(-min(Fraction(1), level + eps), np.float64) for level in levels])


def why_not_adversarial(
    network: LoadedNetwork, images: Split, index: int, point: np.ndarray | None, ends: tuple[np.ndarray, np.ndarray]
) -> str:
    """Return why a point is no adversarial image of an image, or "". ends: of `box_ends`.

    It is one if all its numbers, exactly, lie in the box and a margin is proved to be negative there.
    """
    pixels, label = images.images[index].numpy(), images.labels[index : index + 1]
    if point is None:
        return "there is none"
    if point.dtype not in (np.float32, np.float64) or point.shape != pixels.shape:
        return f"found {point.dtype} {list(point.shape)}, allowed: float32 or float64 {list(pixels.shape)}"
    values, low, high = point.astype(np.float64), ends[0][pixels], ends[1][pixels]
    if not ((low <= values) & (values <= high)).all():
        beyond = float(np.fmax(low - values, values - high).max())
        return f"a pixel lies outside of the box, by {beyond:.3g}"
    margin = float(margins_at(network.prepared, torch.from_numpy(values)[None], label))
    return "" if margin < 0 else f"no margin is proved to be negative there: the smallest is {margin:.3g}"


def attack(
    network: LoadedNetwork, images: Split, indices: list[int], eps: Radius, settings: EvaluationSettings
) -> Iterator[tuple[int, Tensors]]:
    """Attack images by PGD, some at a time; yield how many were attacked, and the adversarial ones by image.

    These are float64, lie in the exact box and are proved to be misclassified. Raises InputError where the runtime's
    logits at a point are not the network's in float64.
    """
    for start in range(0, len(indices), _BATCH):
        numbers = torch.tensor(indices[start : start + _BATCH])
        x, labels = images.images[numbers].double() / 255, images.labels[numbers]
        points = worst_point(network.prepared.attack_model, x.float(), labels, eps, settings, 0, numbers)
        inside = decode(encode(points, x, eps), x, eps)
        network.logits(inside)
        hits = (margins_at(network.prepared, inside, labels) < 0).nonzero()[:, 0].tolist()
        yield len(numbers), {str(int(numbers[hit])): inside[hit].numpy() for hit in hits}


def proves_certificate(prove: Prove | str, images: Split, index: int, certificate: Tensors | None) -> tuple[bool, str]:
    """Return whether the checker proves an image, by its certificate or without one, and why it refuses that.

    No reason is given if that is open: time ran out, or `prove` is a text, since the checker cannot read the network.
    """
    if isinstance(prove, str):
        return False, ""
    try:
        with limits(_IMAGE_SECONDS):
            is_proved, why = prove(images.images[index].double().numpy(), int(images.labels[index]), certificate)
    except OutOfTimeError:
        return False, ""
    return is_proved, why if certificate else ""


def verifies(network: LoadedNetwork, images: Split, index: int, eps: Radius) -> tuple[bool, np.ndarray | None]:
    """Return whether our verifier proves an image, and the adversarial image in its box that it finds, if any."""
    x, labels = images.images[index : index + 1].double() / 255, images.labels[index : index + 1]
    classes = network.prepared.model(x).shape[1]
    try:
        with limits(2 * _IMAGE_SECONDS):
            spec = margin_spec(labels, classes).double()
            result = verify(network.prepared.model, LinfBall(x, eps), spec, _IMAGE_SECONDS)
    except (OutOfTimeError, UnsupportedOperator):
        return False, None
    if result.status[0] != "falsified":
        return result.status[0] == "certified", None
    low, high = (ends[images.images[index].numpy()] for ends in box_ends(eps))
    return False, np.clip(result.counterexample[0].numpy(), low, high)
