"""Prove the verdicts of images again, with the network of stored weights."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from baselines import build
from cerdeq.equilibrium import fold
from harness.checker.bounds.boxes import Array, Box, ball
from harness.checker.bounds.equilibrium import NotProvedError, contraction, prove_unique
from harness.checker.bounds.maps import UnknownLayerError
from harness.checker.bounds.network import Network, ReluStep, read_network, result_box
from harness.checker.bounds.regions import interval_region
from harness.checker.proofs.certificates import Tensors
from harness.checker.proofs.example import prove, why_faulty, why_not_falsified
from harness.checker.verdict_tables import describe
from harness.common import names
from harness.common.errors import InputError, error_line
from harness.data import Split
from harness.evaluation.network import load_network
from harness.settings import STAGES
from harness.storage import folder
from harness.sweep.trial_config import TrialConfig

_BATCH = 20  # images
_COMPARED = 10  # images whose logits are compared with the module's
_HIGHER, _LOWER = 1e-4, 1e-3  # how far a recorded margin of IBP may differ, relative to 1 + the checker's size


@dataclass(frozen=True)
class Checker:
    """What the verdicts of one folder are checked with."""

    network: Network
    eps: Fraction
    stages: Sequence[str]
    counterexamples: Tensors
    certificates: Mapping[str, Tensors]

    def check(self, row: dict[str, Any], pixels: Array, clean: tuple[float, float], lower: float) -> tuple[str, str]:
        """Check the verdict of one image [C, H, W].

        clean: bounds by intervals of its smallest margin at the image. lower: a lower bound over its ball.

        Returns:
            What is wrong or not confirmed, or ""; and what proved a certified image, or "".
        """
        index, label = str(row[names.INDEX]), int(row[names.LABEL])
        problem = check_prediction(row, clean[0]) or check_ibp(row, lower) or check_ibp_margin(row, lower)
        if problem := problem or check_other_margins(row, clean[1], self.stages):
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
        )
        return f"image {index}: {describe(row)}, not confirmed: {why}", ""

    def check_all(self, test: Split, verdicts: pd.DataFrame) -> tuple[list[str], Counter[tuple[str, str]]]:
        """Check the verdicts of the first images.

        Returns:
            A line for each problem; and the number of certified examples by stage and by what proved them, or "".
        """
        problems, proofs = list[str](), Counter[tuple[str, str]]()
        for start in range(0, len(verdicts), _BATCH):
            part = verdicts[start : start + _BATCH]
            pixels = test.images[start : start + len(part)].numpy().astype(np.float64)
            labels = part[names.LABEL].to_numpy()
            clean = _smallest_margins(self.network, ball(pixels, 0.0), labels)
            lower, _ = _smallest_margins(self.network, ball(pixels, float(self.eps)), labels)
            rows = zip(part.to_dict("records"), pixels, zip(*clean, strict=True), lower, strict=True)
            for row, image, at_image, over_ball in rows:
                problem, proved_by = self.check(row, image, at_image, over_ball)
                problems += [problem] if problem else []
                if row[names.VERDICT] == names.CERTIFIED:
                    proofs[row[names.STAGE], proved_by] += 1
        return problems, proofs


def load_checked_network(path: Path, config: TrialConfig, test: Split) -> Network:
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


def prover_of(
    model: nn.Module, eps: Fraction, images: Array
) -> tuple[Callable[[Array, int, Tensors | None], tuple[bool, str]], Callable[[Tensors], str]] | str:
    """Return what proves single images, and what reads a certificate.

    The first function takes an image [C, H, W], grey levels 0 to 255, its label and certificate, and returns whether
    all margins are proved to be positive over the ball, and why not. The second one returns what is wrong with the form
    of a certificate, or "". A text is returned instead, and says why, if the network cannot be checked: layers without
    a rule, an equilibrium without a proof.

    model: float64, in evaluation mode. images: [B, C, H, W] in [0, 1], at which its logits are compared.
    """
    try:
        network = read_network(model)
        network.refuse_other_logits(model, images)
    except UnknownLayerError as error:
        return f"the checker has no rule for {error.what}"
    if problems := check_finite(model) + check_contraction(network, images.shape[1:]):
        return problems[0]

    def prove_image(pixels: Array, label: int, certificate: Tensors | None) -> tuple[bool, str]:
        proof = prove(network, ball(pixels[None], float(eps)), label, certificate)
        refused = f"its certificate is refused: {proof.refused}"
        return bool(proof.proved_by), refused if proof.refused else f"a margin has the lower bound {proof.minimum:.3g}"

    region = interval_region(network, Box(images[:1], np.zeros_like(images[:1])))
    return prove_image, lambda certificate: why_faulty(network, region, len(network.bias) - 1, certificate)


def describe_unreadable(configs: Iterable[TrialConfig]) -> list[str]:
    """Return a line for each network with steps that the checker has no rule for, from untrained networks."""
    lines = []
    networks = {(c.model, c.dataset, c.width, str(c.options)): c for c in configs}
    for config in networks.values():
        with torch.random.fork_rng(devices=[]):
            model = build(config.model, config.dataset, config.width, **config.options)
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
    values = [Box(image, image)]
    for step in network.steps[:-1]:
        sources = [values[source] for source in step.sources]
        if isinstance(step.operation, ReluStep) and (weight := step.operation.weight) is not None:
            try:
                if step.operation.by_splitting:
                    prove_unique(weight, sources[0].center.shape[1:])
                else:
                    contraction(weight)
            except NotProvedError as error:
                return [f"{folder.WEIGHTS}: {step.name}: {error}"]
        values.append(result_box(step, *sources))
    return []


def check_counterexamples(verdicts: pd.DataFrame, counterexamples: Tensors) -> list[str]:
    """Check that counterexamples are stored for falsified images only."""
    verdict = dict(zip(verdicts[names.INDEX].astype(str), verdicts[names.VERDICT], strict=True))
    others = {index: verdict.get(index) for index in counterexamples if verdict.get(index) != names.FALSIFIED}
    return [
        f"image {index}: {folder.COUNTEREXAMPLES} has a counterexample, but the verdict is {value}"
        if value
        else f"{folder.COUNTEREXAMPLES} has a counterexample for {index!r}, but no image has this index"
        for index, value in others.items()
    ]


def check_certificates(verdicts: pd.DataFrame, certificates: Mapping[str, Tensors]) -> list[str]:
    """Check that certificates are stored only for images that were certified by a stage which stores them."""
    stages = [stage for stage, record in STAGES.items() if "certificates" in record.settings]
    has_one = verdicts[verdicts[names.INDEX].astype(str).isin(certificates)]
    others = has_one[(has_one[names.VERDICT] != names.CERTIFIED) | ~has_one[names.STAGE].isin(stages)]
    strays = sorted(certificates.keys() - set(verdicts[names.INDEX].astype(str)))
    return [
        f"image {row[names.INDEX]}: {folder.CERTIFICATES} has a certificate, but the verdict is {describe(row)}"
        for row in others.to_dict("records")
    ] + [f"{folder.CERTIFICATES} has a certificate for {index!r}, but no image has this index" for index in strays]


def check_prediction(row: Mapping[str, Any], lower: float) -> str:
    """Check that the prediction is right exactly where it is proved to be. lower: of the smallest margin there."""
    is_right = row[names.PREDICTION] == row[names.LABEL]
    if row[names.PREDICTION] == names.NO_PREDICTION:
        problem = "no prediction is recorded, but the prediction is not proved to be right: the standard and the attack"
        return "" if lower > 0 else f"{problem} error must count this image"
    if is_right == (lower > 0):
        return ""
    return f"recorded as {'right' if is_right else 'wrong'}, but at the image {_describe_bound(lower)}"


def check_ibp(row: Mapping[str, Any], lower: float) -> str:
    """Check an image that IBP certified. lower: of the smallest margin over its ball."""
    if row[names.VERDICT] == names.CERTIFIED and row[names.STAGE] == names.IBP and not lower > 0:
        return f"certified by {names.IBP}, but {_describe_bound(lower)}"
    return ""


def check_ibp_margin(row: Mapping[str, Any], lower: float) -> str:
    """Check IBP's margin. One that is not recorded, NaN or -inf, claims that IBP does not certify the image.

    A lower margin claims less than the checker proves. Evaluation starts from a float32 guess of an equilibrium's box,
    so the box is wider: that lowers margins by up to 2e-4.
    """
    recorded = float(row[names.margin_column(names.IBP)])
    if (np.isnan(recorded) or recorded == -np.inf) and lower <= _LOWER:
        return ""
    if isfinite(lower) and -_LOWER <= (recorded - lower) / (1 + abs(lower)) <= _HIGHER:
        return ""
    return f"{names.IBP}'s margin is recorded as {recorded:.6g}, but the checker's is {lower:.6g}"


def check_other_margins(row: Mapping[str, Any], upper: float, stages: Sequence[str]) -> str:
    """Check that no later stage's margin over the ball is above the margin at the image. upper: bound of that one."""
    for stage in stages:
        recorded = float(row[names.margin_column(stage)])
        if recorded > upper:
            return f"{stage}'s margin is recorded as {recorded:.6g}, but at the image it is at most {upper:.6g}"
    return ""


def _smallest_margins(network: Network, images: Box, labels: Array) -> tuple[Array, Array]:
    """Return bounds [B] by intervals of the smallest margin of each image over its box; infinite ones say nothing."""
    margins = network.margins(network.boxes(images), labels)
    return margins.lower.min(1), margins.upper.min(1)


def _describe_bound(lower: float) -> str:
    if lower == -np.inf:
        return "no lower bound of the smallest margin was found"
    return f"the smallest margin is at least {lower:.6g}"
