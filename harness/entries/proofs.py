"""A random sample of the claimed images is proved again: by the checker, else by this project's verifier."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from torch import nn

from cerdeq import LinfBall, margin_spec, verify
from cerdeq.bounds import UnsupportedOperator
from harness.common.errors import InputError, shorten
from harness.common.radius import Radius
from harness.entries.checked import SHARE, CheckedNetwork, Outcome, Tensors, describe_hits
from harness.entries.files import OutOfTimeError, limits
from harness.entries.network import NETWORK

Prove = Callable[[np.ndarray, int, Tensors | None], tuple[bool, str]]
"""Grey levels [C, H, W], label, certificate -> whether all margins are proved over the ball, and why not."""
ProverOf = Callable[[nn.Module, Radius, np.ndarray], tuple[Prove, Callable[[Tensors], str]] | str]
"""Model, eps, some images -> (prove, why_malformed); or a text: why the checker cannot read the network.

`why_malformed` returns "" for a well-formed certificate.
"""

SAMPLE = 300
"""Images whose proofs are checked. If a hundredth of the claims is false, all are proved with probability 0.05."""
IMAGE_SHARE = 1 / 60  # of the step's time, for each proof
_NO_STEPS = ("hidden", "equilibrium")  # parts of names of certificates' tensors


def in_random_order(indices: list[int], manifest: str, nonce: str, seed: int) -> list[int]:
    """Return image numbers in the order of SHA-256 of "<SHA-256 of the manifest> <nonce> <seed> <image>"."""
    return sorted(indices, key=lambda n: hashlib.sha256(f"{manifest} {nonce} {seed} {n}".encode()).digest())


def check_proofs(networks: Sequence[CheckedNetwork], prover_of: ProverOf, seconds: float) -> Outcome:
    """Prove a sample of the claimed images, by certificates, else by the checker's bounds, else by our verifier."""
    notes, records = dict[str, None](), [each.record for each in networks]
    for record in records:
        record.sample = record.unconfirmed = min(SAMPLE, record.claimed)
    with suppress(OutOfTimeError), limits(SHARE * seconds):
        for each in networks:
            _prove_sample(each, prover_of, IMAGE_SHARE * seconds, notes)
    for each in networks:
        _conclude(each)
    if refuted := describe_hits(networks):
        return False, f"refuted by our verifier: {refuted}"
    counts = [sum(record.sample for record in records), sum(r.confirmed_by_certificate for r in records)]
    others = [sum(record.confirmed_by_verifier for record in records), sum(r.unconfirmed for r in records)]
    message = f"of {counts[0]} drawn images the checker proves {counts[1]}, our verifier alone {others[0]}"
    message += f"; {others[1]} are not proved"
    return (True if counts[0] == counts[1] else None), "; ".join([message, *notes])


def _prove_sample(each: CheckedNetwork, prover_of: ProverOf, seconds: float, notes: dict[str, None]) -> None:
    """Read all certificates of a network, then prove its sample, up to the first hit.

    seconds: limit of each proof. notes: why nothing could be checked is added.
    """
    few, record = each.images.images[:10].double().numpy() / 255, each.record
    prover, prove = prover_of(each.network.prepared.model, each.eps, few), None
    certificates = _read_certificates(each)
    if isinstance(prover, str):
        notes[f"no certificate was checked: {prover}"] = None
    else:
        prove, why_malformed = prover
        for image, certificate in certificates.items():
            if why := why_malformed(certificate):
                raise InputError(f"image {image}: its certificate is refused: {why}")
    for index in each.claims[:SAMPLE]:
        is_proved, why = proves_certificate(prove, each, index, certificates.get(str(index)), seconds)
        if why and not is_proved:
            raise InputError(f"image {index} is not proved at eps {each.eps} by its certificate: {why}")
        is_verified = not is_proved and _is_verified(each, index, seconds)
        record.confirmed_by_certificate += is_proved
        record.confirmed_by_verifier += is_verified
        record.unconfirmed -= is_proved or is_verified
        if each.hits:
            return


def proves_certificate(
    prove: Prove | None, each: CheckedNetwork, index: int, certificate: Tensors | None, seconds: float
) -> tuple[bool, str]:
    """Return whether the checker proves an image, by its certificate or without one, and why it refuses that.

    No reason is returned if that is undecided: time ran out, or there is no `prove`.
    """
    if prove is None:
        return False, ""
    pixels, label = each.images.images[index].double().numpy(), int(each.images.labels[index])
    try:
        with limits(seconds):
            is_proved, why = prove(pixels, label, certificate)
    except OutOfTimeError:
        return False, ""
    return is_proved, why if certificate else ""


def _is_verified(each: CheckedNetwork, index: int, seconds: float) -> bool:
    """Return whether our verifier proves an image; an adversarial image that it finds is a hit."""
    x, labels = each.images.images[index : index + 1].double() / 255, each.images.labels[index : index + 1]
    model = each.network.prepared.model
    try:
        with limits(2 * seconds):
            spec = margin_spec(labels, model(x).shape[1]).double()
            result = verify(model, LinfBall(x, each.eps), spec, seconds)
    except (OutOfTimeError, UnsupportedOperator):
        return False
    if result.status[0] == "falsified":
        point = np.clip(result.counterexample[0].numpy(), *each.box(index))
        each.hits |= {} if each.why_not_adversarial(index, point) else {str(index): point}
    return result.status[0] == "certified"


def _conclude(each: CheckedNetwork) -> None:
    """Fill in the certified error, if the sample supports one: it is all claims, or none of it is unconfirmed."""
    record = each.record
    if each.hits or (record.unconfirmed and record.sample < record.claimed):
        return
    undecided = len(each.images) - each.wrong - record.claimed + record.unconfirmed
    record.checked.certified_error = each.percent(each.wrong + undecided)
    record.checked.undecided = each.percent(undecided)


def _read_certificates(each: CheckedNetwork) -> dict[str, Tensors]:
    """Return the certificate of each image, by the rest of the tensors' names, "<image>/<step>/<field>".

    Names of steps by `cerdeq.load_onnx` are without what they begin with here. Raises InputError for a certificate of
    an image that is not claimed to be certified, and for a tensor that is there twice.
    """
    file, prefix = each.entry.certificates, NETWORK if each.network.run else ""
    images, claimed = defaultdict[str, Tensors](dict), set(map(str, each.claims))
    for key, tensor in each.tensors(file).items():
        image, _, rest = key.partition("/")
        if image not in claimed or not rest:
            raise InputError(f"{file}: found {shorten(key)}, allowed: <image>/... of images that the table certifies")
        *steps, field = rest.split("/")
        name = "/".join([*(s if s in _NO_STEPS or s.startswith(prefix) else prefix + s for s in steps), field])
        if name in images[image]:
            raise InputError(f"{file}: found {shorten(key)} twice, with and without {prefix!r}, allowed: once")
        images[image][name] = tensor
    return images
