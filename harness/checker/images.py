"""Prove the verdicts of images again, with the network of stored weights."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from baselines import build
from cerdeq.equilibrium import fold
from harness.checker.bounds.boxes import Array, Box, ball
from harness.checker.bounds.equilibrium import NotProvedError
from harness.checker.bounds.maps import UnknownLayerError
from harness.checker.bounds.network import Network, read_network
from harness.checker.proofs.certificates import Tensors
from harness.checker.proofs.example import prove, why_not_falsified
from harness.checker.verdict_table import describe
from harness.common import names
from harness.common.errors import InputError, error_line
from harness.config.training import Training
from harness.data import Split
from harness.evaluation.network import load_network
from harness.storage import folder

_BATCH = 20  # images
_COMPARED = 10  # images whose logits are compared with the module's


@dataclass(frozen=True)
class Checker:
    """What the verdicts of one folder are checked with."""

    network: Network
    eps: Fraction
    counterexamples: Tensors
    certificates: Mapping[str, Tensors]

    def check(self, row: dict[str, Any], pixels: Array, clean: float, lower: float) -> tuple[str, str]:
        """Check the verdict of one image [C, H, W].

        clean, lower: lower bounds by intervals of its smallest margin, at the image and over its ball.

        Returns:
            What is wrong or not confirmed, or ""; and what proved a certified image, or "".
        """
        index, label = str(row[names.INDEX]), int(row[names.LABEL])
        if problem := check_prediction(row, clean) or check_ibp(row, lower):
            return f"image {index}: {problem}", ""
        if row[names.VERDICT] == names.FALSIFIED:
            why = why_not_falsified(self.network, pixels, label, self.counterexamples.get(index), self.eps)
            return f"image {index}: falsified, not confirmed: {why}" if why else "", ""
        if row[names.VERDICT] != names.CERTIFIED:
            return "", ""
        certificate = self.certificates.get(index)
        if lower > 0 and certificate is None:
            return "", names.IBP
        proof = prove(self.network, ball(pixels[None], float(self.eps)), label, certificate)
        if proof.proved_by:
            return "", proof.proved_by
        why = (
            f"certificate refused: {proof.refused}"
            if proof.refused
            else f"the lower bound of a margin is {proof.minimum:.6g}"
            + ("" if certificate else ", and no certificate is stored (`evaluation.certificates`)")
        )
        return f"image {index}: {describe(row)}, not confirmed: {why}", ""

    def check_all(self, test: Split, verdicts: pd.DataFrame) -> tuple[list[str], Counter[tuple[str, str]]]:
        """Check the verdicts of images that follow each other.

        Returns:
            A line for each problem; and the number of certified examples by stage and by what proved them, or "".
        """
        problems, proofs = list[str](), Counter[tuple[str, str]]()
        for start in range(0, len(verdicts), _BATCH):
            part = verdicts[start : start + _BATCH]
            first = int(part[names.INDEX].iloc[0])
            pixels = test.images[first : first + len(part)].numpy().astype(np.float64)
            labels = part[names.LABEL].to_numpy()
            clean = _smallest_margins(self.network, ball(pixels, 0.0), labels)
            lower = _smallest_margins(self.network, ball(pixels, float(self.eps)), labels)
            rows = zip(part.to_dict("records"), pixels, clean, lower, strict=True)
            for row, image, at_image, over_ball in rows:
                problem, proved_by = self.check(row, image, at_image, over_ball)
                problems += [problem] if problem else []
                if row[names.VERDICT] == names.CERTIFIED:
                    proofs[row[names.STAGE], proved_by] += 1
        return problems, proofs


def load_checked_network(path: Path, config: Training, test: Split) -> Network:
    """Return the network with the stored weights. Raises InputError where they are another network's, or not finite."""
    try:
        model = load_network(config, path)
        if problems := check_finite(model):
            raise InputError(f"{path}: {problems[0]}")
        network = read_network(model)
        network.refuse_other_logits(model, test.images[:_COMPARED].double().numpy() / 255)
        return network
    except InputError:
        raise
    except Exception as error:  # a config of huge numbers or a plugin may raise anything
        raise InputError(f"{path} cannot be read: {error_line(error)}") from None


def describe_unreadable(configs: Iterable[Training]) -> list[str]:
    """Return a line for each network with steps that the checker has no rule for, from untrained networks."""
    lines = []
    networks = {(c.model, c.dataset, c.width, str(c.options)): c for c in configs}
    for config in networks.values():
        with torch.random.fork_rng(devices=[]):
            model = build(config.model, config.data_info, config.width, **config.options)
        fold(model)
        try:
            read_network(model.eval())
        except UnknownLayerError as error:
            lines.append(f"{config.model}: harness.recheck will confirm no verdict: it has no rule for {error.what}")
    return lines


def check_finite(model: nn.Module) -> list[str]:
    """Check that every weight is finite."""
    state = model.state_dict().items()
    return [f"{name} is not finite" for name, tensor in state if not bool(tensor.isfinite().all())]


def check_contraction(network: Network, shape: tuple[int, ...]) -> list[str]:
    """Check that every equilibrium exists, is unique and can be solved: rho(|W|) < 1, or strong monotonicity.

    shape: of images.
    """
    image = np.zeros((1, *shape))
    try:
        network.boxes(Box(image, image))
    except NotProvedError as error:
        return [f"{folder.WEIGHTS}: {error}"]
    return []


def check_prediction(row: Mapping[str, Any], lower: float) -> str:
    """Check that the image is misclassified exactly where it is not proved to be right. lower: of its smallest margin.

    Other verdicts claim that the prediction is right: the standard and the attack error leave them out. A misclassified
    image without a prediction claims nothing.
    """
    is_right = row[names.VERDICT] != names.MISCLASSIFIED
    if is_right == (lower > 0) or (not is_right and row[names.PREDICTION] == names.NO_PREDICTION):
        return ""
    return f"recorded as {'right' if is_right else 'wrong'}, but at the image {_describe_bound(lower)}"


def check_ibp(row: Mapping[str, Any], lower: float) -> str:
    """Check an image that IBP certified. lower: of the smallest margin over its ball."""
    if row[names.VERDICT] == names.CERTIFIED and row[names.STAGE] == names.IBP and not lower > 0:
        return f"certified by {names.IBP}, but {_describe_bound(lower)}"
    return ""


def _smallest_margins(network: Network, images: Box, labels: Array) -> Array:
    """Return lower bounds [B] by intervals of the smallest margin of each image over its box; -inf says nothing."""
    return network.margins(network.boxes(images), labels).lower.min(1)


def _describe_bound(lower: float) -> str:
    if lower == -np.inf:
        return "no lower bound of the smallest margin was found"
    return f"the smallest margin is at least {lower:.6g}"
