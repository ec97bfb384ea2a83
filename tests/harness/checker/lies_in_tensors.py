"""Lies in weights, counterexamples and certificates."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lies_in_folders import IMAGES, Lie
from lies_in_verdicts import IBP, NOT_CONFIRMED, NOT_PROVED_BY_IBP, PREDICTED, PROVE, proved
from lying_sweep import Change, Sweep, change_tensors

from harness.attacks.counterexamples import pack, unpack
from harness.storage import folder

TENSORS, FINITE, CONTRACTION = (
    "harness.evaluation.network.check_tensors",
    f"{IMAGES}.check_finite",
    "harness.checker.verdicts.check_contraction",
)
FALSIFIED = f"{IMAGES}.why_not_falsified"
STEP, COVER = "harness.checker.proofs.certificates._check_step", "harness.checker.proofs.cover.covers_everything"
REFUSED = NOT_CONFIRMED + "certificate refused: "


def change_weights(change: Callable[[dict[str, torch.Tensor]], Any], of: str = "cnn5") -> Change:
    return change_tensors(folder.WEIGHTS, change, of)


def store_as(dtype: torch.dtype, name: str = "classifier.weight") -> Change:
    return change_weights(lambda state: state.update({name: state[name].to(dtype)}))


def set_weight(value: float) -> Change:
    return change_weights(lambda state: state["classifier.weight"][0, 0].fill_(value))


def stop_contracting(state: dict[str, torch.Tensor]) -> None:
    weight = state["equilibrium.recurrence.weight"]
    weight *= 1.01 / float(torch.linalg.eigvals(weight.abs().flatten(2).sum(2).double()).abs().max())


def swap(first: str, second: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({first: tensors[second], second: tensors[first]})


def change_points(change: Callable[[torch.Tensor], Any]) -> Change:
    """Replace every counterexample: int16 [1, 8, 8] is passed."""

    def replaced(points: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {index: change(unpack(stored, (1, 8, 8))) for index, stored in points.items()}

    return change_tensors(folder.COUNTEREXAMPLES, replaced)


def rotate_points(points: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    indices = sorted(points)
    return dict(zip(indices, [points[index] for index in [*indices[1:], indices[0]]], strict=True))


def change_certificates(field: str, change: Callable[[torch.Tensor], Any], of: str = "cnn5") -> Change:
    """Replace a field of all certificates."""

    def replaced(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: change(t) if name.endswith(f"/{field}") else t for name, t in tensors.items()}

    return change_tensors(folder.CERTIFICATES, replaced, of)


def rotate_certificates(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    indices = sorted({name.partition("/")[0] for name in tensors})
    other = dict(zip(indices, [*indices[1:], indices[0]], strict=True))
    return {f"{other[name.partition('/')[0]]}/{name.partition('/')[2]}": t for name, t in tensors.items()}


def drop_leaves(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop the first leaf of each certificate that has several."""
    one = {name.partition("/")[0] for name, tensor in tensors.items() if name.endswith("/row") and len(tensor) == 1}
    unchanged = {name for name in tensors if name.partition("/")[0] in one or name.endswith("/neurons")}
    return {name: tensor if name in unchanged else tensor[1:] for name, tensor in tensors.items()}


def randomise(tensor: torch.Tensor) -> torch.Tensor:
    return torch.randint(0, 256, tensor.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def hide_certificates(sweep: Sweep) -> None:
    (sweep.cnn5 / folder.CERTIFICATES).unlink()


LIES = {
    # Weights.
    **{
        f"weights as {dtype}": Lie(store_as(dtype), f"weights.safetensors: classifier.weight is {dtype}", TENSORS)
        for dtype in (torch.float64, torch.complex64, torch.bfloat16, torch.int32)
    },
    "a count as float32": Lie(store_as(torch.float32, "norm1.num_batches_tracked"),
        "norm1.num_batches_tracked is torch.float32", TENSORS),
    "a number as a vector": Lie(
        change_weights(lambda state: state.update({"norm1.num_batches_tracked": torch.ones(1, dtype=torch.int64)})),
        "norm1.num_batches_tracked is torch.int64 [1], expected torch.int64 []", TENSORS),
    "a tensor too many": Lie(change_weights(lambda state: state.update(extra=torch.ones(3))),
        "weights.safetensors: the tensor extra is not the network's", TENSORS),
    "a tensor that is missing": Lie(change_weights(lambda state: state.pop("norm1.running_var")),
        "weights.safetensors: the tensor norm1.running_var is missing", TENSORS),
    "a weight of NaN": Lie(set_weight(np.nan), "weights.safetensors: classifier.weight is not finite", FINITE),
    "an infinite weight": Lie(set_weight(np.inf), "weights.safetensors: classifier.weight is not finite", FINITE),
    "two rows of a weight swapped": Lie(
        change_weights(
            lambda state: state.update({"classifier.weight": state["classifier.weight"][[1, 0, *range(2, 10)]]})),
        "recorded as right, but at the image", PREDICTED),
    "another normalisation": Lie(change_weights(lambda state: state["normalize.mean"].add_(0.2)), NOT_PROVED_BY_IBP,
        IBP),
    "a W that does not contract": Lie(change_weights(stop_contracting, "cerdeq"),
        "equilibrium.recurrence: rho(|W|) < 1 is not proved", CONTRACTION, "cerdeq"),
    # Counterexamples.
    "no counterexample": Lie(
        change_tensors(folder.COUNTEREXAMPLES, lambda points: {"no": next(iter(points.values()))}),
        "there is no counterexample", FALSIFIED),
    "the image as its counterexample": Lie(change_points(torch.zeros_like), "no margin is proved to be below 0",
        FALSIFIED),
    "a counterexample beyond the ball": Lie(change_points(lambda k: torch.full_like(k, -32768)), "outside of the ball",
        FALSIFIED),
    "counterexamples as int32": Lie(change_points(lambda k: k.int()), "the counterexample is int32", FALSIFIED),
    "counterexamples of NaN": Lie(change_points(lambda k: torch.nan * k.double()), "outside of the ball", FALSIFIED),
    "counterexamples of another shape": Lie(change_points(lambda k: k[0]),
        "(8, 8), expected float64 or int16 (1, 8, 8)", FALSIFIED),
    "signs of another shape": Lie(change_points(lambda k: pack(k.sign() * 32767)[None]),
        "expected float64 or int16 (1, 8, 8) or uint8 (8,)", FALSIFIED),
    "too few signs": Lie(change_points(lambda k: pack(k.sign() * 32767)[:7]),
        "expected float64 or int16 (1, 8, 8) or uint8 (8,)", FALSIFIED),
    "the opposite corner": Lie(change_points(lambda k: pack(-32767 * k.sign().where(k != 0, k.new_ones(())))),
        "no margin is proved to be below 0", FALSIFIED),
    "counterexamples of other images": Lie(change_tensors(folder.COUNTEREXAMPLES, rotate_points),
        "no margin is proved to be below 0", FALSIFIED),
    # Certificates.
    "no certificates": Lie(hide_certificates, NOT_CONFIRMED + "the lower bound of a margin", PROVE, accept=proved),
    "certificates of other images": Lie(change_tensors(folder.CERTIFICATES, rotate_certificates), NOT_CONFIRMED, PROVE,
        accept=proved),
    "slopes at random": Lie(change_certificates("slopes", randomise), NOT_CONFIRMED, PROVE, accept=proved),
    "a negative multiplier": Lie(change_certificates("multipliers", lambda t: t.fill_(-1)),
        REFUSED + "relu1: a multiplier is below 0", STEP),
    "a multiplier of NaN": Lie(change_certificates("multipliers", lambda t: t.fill_(torch.nan)),
        REFUSED + "relu1: a multiplier is below 0 or not", STEP),
    "slopes as float32": Lie(change_certificates("slopes", lambda t: t.float()), REFUSED, PROVE, accept=proved),
    "a sign of 2": Lie(change_certificates("signs", lambda t: t.fill_(2)), REFUSED + "relu1: a sign is not", STEP),
    "a row of no class": Lie(change_certificates("row", lambda t: t + 9),
        REFUSED + "a leaf has a row that is not in 0 to 8", PROVE, accept=proved),
    "leaves that are missing": Lie(change_tensors(folder.CERTIFICATES, drop_leaves, "certified"),
        "certified by bab, not confirmed: certificate refused", COVER, "certified", accept=lambda splits: True),
    "leaves of one side only": Lie(change_certificates("signs", torch.abs, "certified"),
        "certified by bab, not confirmed: certificate refused", COVER, "certified", accept=lambda splits: True),
}  # fmt: skip
