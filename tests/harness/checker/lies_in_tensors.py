"""Lies in weights, counterexamples and certificates."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lies_in_folders import Lie
from lies_in_verdicts import NOT_CONFIRMED, NOT_PROVED_BY_IBP
from lying_sweep import Change, change_tensors

from harness.attacks.counterexamples import pack, unpack
from harness.storage import folder


def change_weights(change: Callable[[dict[str, torch.Tensor]], Any], of: str = "cnn5") -> Change:
    return change_tensors(folder.WEIGHTS, change, of)


def stop_contracting(state: dict[str, torch.Tensor]) -> None:
    weight = state["equilibrium.recurrence.weight"]
    weight *= 1.01 / float(torch.linalg.eigvals(weight.abs().flatten(2).sum(2).double()).abs().max())


def change_points(change: Callable[[torch.Tensor], Any]) -> Change:
    """Replace every counterexample: int16 [1, 8, 8] is passed."""

    def replaced(points: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {index: change(unpack(stored, (1, 8, 8))) for index, stored in points.items()}

    return change_tensors(folder.COUNTEREXAMPLES, replaced)


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


LIES = {
    # Weights.
    "weights as float64": Lie(
        change_weights(lambda state: state.update({"classifier.weight": state["classifier.weight"].double()})),
        "weights.safetensors: classifier.weight is torch.float64"),
    "a number as a vector": Lie(
        change_weights(lambda state: state.update({"norm1.num_batches_tracked": torch.ones(1, dtype=torch.int64)})),
        "norm1.num_batches_tracked is torch.int64 [1], expected torch.int64 []"),
    "a tensor too many": Lie(change_weights(lambda state: state.update(extra=torch.ones(3))),
        "weights.safetensors: the tensor extra is not the network's"),
    "a tensor that is missing": Lie(change_weights(lambda state: state.pop("norm1.running_var")),
        "weights.safetensors: the tensor norm1.running_var is missing"),
    "a weight of NaN": Lie(change_weights(lambda state: state["classifier.weight"][0, 0].fill_(np.nan)),
        "weights.safetensors: classifier.weight is not finite"),
    "two rows of a weight swapped": Lie(
        change_weights(
            lambda state: state.update({"classifier.weight": state["classifier.weight"][[1, 0, *range(2, 10)]]})),
        "recorded as right, but at the image"),
    "another normalisation": Lie(change_weights(lambda state: state["normalize.mean"].add_(0.2)), NOT_PROVED_BY_IBP),
    "a W that does not contract": Lie(change_weights(stop_contracting, "cerdeq"),
        "equilibrium.recurrence: rho(|W|) < 1 is not proved", "cerdeq"),
    # Counterexamples.
    "no counterexample": Lie(
        change_tensors(folder.COUNTEREXAMPLES, lambda points: {"no": next(iter(points.values()))}),
        "there is no counterexample"),
    "the image as its counterexample": Lie(change_points(torch.zeros_like), "no margin is proved to be below 0"),
    "a counterexample beyond the ball": Lie(change_points(lambda k: torch.full_like(k, -32768)), "outside of the ball"),
    "counterexamples of NaN": Lie(change_points(lambda k: torch.nan * k.double()), "outside of the ball"),
    "counterexamples as int32": Lie(change_points(lambda k: k.int()), "the counterexample is int32"),
    "too few signs": Lie(change_points(lambda k: pack(k.sign() * 32767)[:7]),
        "expected float64 or int16 (1, 8, 8) or uint8 (8,)"),
    "the opposite corner": Lie(change_points(lambda k: pack(-32767 * k.sign().where(k != 0, k.new_ones(())))),
        "no margin is proved to be below 0"),
    # Certificates. Their malformed tensors are in test_certificates.py.
    "no certificates": Lie(lambda sweep: (sweep.cnn5 / folder.CERTIFICATES).unlink(),
        NOT_CONFIRMED + "the lower bound of a margin"),
    "certificates of other images": Lie(change_tensors(folder.CERTIFICATES, rotate_certificates), NOT_CONFIRMED),
    "slopes at random": Lie(change_certificates("slopes", randomise), NOT_CONFIRMED),
    "slopes as float32": Lie(change_certificates("slopes", lambda t: t.float()),
        NOT_CONFIRMED + "certificate refused: "),
    "leaves that are missing": Lie(change_tensors(folder.CERTIFICATES, drop_leaves, "certified"),
        "certified by bab, not confirmed: certificate refused", "certified"),
    "leaves of one side only": Lie(change_certificates("signs", torch.abs, "certified"),
        "certified by bab, not confirmed: certificate refused", "certified"),
}  # fmt: skip
