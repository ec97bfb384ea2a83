"""Prove the verdicts in one folder again, a trial's or a certification's."""

from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError

from harness.checker.boxes import Array, Box, ball
from harness.checker.certificates import Tensors, read_tensors, split_by_example
from harness.checker.equilibrium import NotProvedError
from harness.checker.maps import UnknownLayerError
from harness.checker.network import Network
from harness.checker.proofs import prove, why_not_falsified
from harness.config.plugins import load_for
from harness.config.trial import TrialConfig
from harness.data import Data, Split, load
from harness.errors import InputError, require
from harness.evaluation.network import load_network
from harness.storage import certification, folder, names

_IBP = "ibp"
_MARGIN = names.margin_column(_IBP)
_COLUMNS = [names.INDEX, names.LABEL, names.PREDICTION, names.VERDICT, names.STAGE, _MARGIN]
_BATCH = 20  # images
_AGREEMENT = 1e-4  # allowed difference from recorded margins, relative to 1 + their size


@dataclass
class RecheckResult:
    """The result for one folder of verdicts.

    images, of: the number of checked verdicts, and of all verdicts.
    problems: what is wrong or not confirmed, a line each.
    recorded, confirmed: the certified errors of the checked verdicts, in percent.
    proofs: the number of certified examples by stage and by what proved them, "" for not confirmed.
    has_weights: whether the weights are stored.
    """

    images: int
    of: int
    problems: list[str]
    recorded: float = np.nan
    confirmed: float = 100.0
    proofs: Counter[tuple[str, str]] = field(default_factory=Counter)
    has_weights: bool = True

    @property
    def is_confirmed(self) -> bool:
        """True if every checked verdict was confirmed."""
        return not self.problems

    @property
    def is_complete(self) -> bool:
        """True if every verdict was checked."""
        return self.images == self.of


@dataclass(frozen=True)
class _Checker:
    """What the verdicts of one folder are checked with."""

    network: Network
    eps: Fraction
    counterexamples: Tensors
    certificates: dict[str, Tensors]

    def check(self, row: dict[str, Any], pixels: Array, clean: float, lower: float) -> tuple[str, str]:
        """Check the verdict of one image [C, H, W].

        clean, lower: lower bounds by intervals of its smallest margin, at the image and over its ball.

        Returns:
            What is wrong or not confirmed, or ""; and what proved a certified image, or "".
        """
        index, label, verdict = str(row[names.INDEX]), int(row[names.LABEL]), row[names.VERDICT]
        if problem := _contradiction(row, clean, lower):
            return f"image {index}: {problem}", ""
        if verdict == names.FALSIFIED:
            why = why_not_falsified(self.network, pixels, label, self.counterexamples.get(index), self.eps)
            return f"image {index}: falsified, not confirmed: {why}" if why else "", ""
        if verdict != names.CERTIFIED or lower > 0:
            return "", _IBP
        proof = prove(self.network, ball(pixels[None], float(self.eps)), label, self.certificates.get(index))
        if proof.proved_by:
            return "", proof.proved_by
        why = f"certificate refused: {proof.refused}" if proof.refused else _describe_bound(proof.minimum)
        return f"image {index}: certified by {row[names.STAGE]}, not confirmed: {why}", ""


def recheck(verdict_dir: Path, data_dir: str | None = None, limit: int | None = None) -> RecheckResult:
    """Recheck the verdicts of a finished trial or certification in its folder.

    Args:
        data_dir: where data sets lie; default as for `load`.
        limit: how many verdicts to check, from the first; default: all.

    Raises:
        InputError: for unreadable files and other data than the trial's.
    """
    is_certification = (verdict_dir / certification.CERTIFICATION).exists()
    trial_dir = certification.trial_of(verdict_dir) if is_certification else verdict_dir
    trial = own_trial = folder.read_trial(trial_dir / folder.TRIAL)
    if is_certification:
        trial = folder.read_certified_trial(verdict_dir / certification.CERTIFICATION)
    result, config = folder.read_result(verdict_dir), trial.config
    if result is None:
        raise InputError(f"{verdict_dir} is not finished")
    load_for(config)
    data = load(config.dataset, data_dir)
    require("data", data.fingerprint, data.fingerprint == trial.fingerprint, f"the trial's data, {trial.fingerprint}")
    test, verdicts = _evaluated_images(data, config, is_certification), folder.read_verdicts(verdict_dir, _COLUMNS)
    problems = _check_table(verdicts, test, result.metrics, config.evaluation.stages)
    if replace(own_trial.config, evaluation=config.evaluation) != config:
        problems.append("certification.json describes another trial than the one that it belongs to")
    if problems:
        return RecheckResult(len(verdicts), len(test), problems)
    if not (trial_dir / folder.WEIGHTS).exists():
        return RecheckResult(0, len(test), [f"{folder.WEIGHTS} is not stored here"], has_weights=False)
    checker = _Checker(
        _load_network(trial_dir / folder.WEIGHTS, config, test),
        config.eps,
        read_tensors(verdict_dir / folder.COUNTEREXAMPLES),
        split_by_example(read_tensors(verdict_dir / folder.CERTIFICATES)),
    )
    return _check_images(checker, test, verdicts[:limit])


def _check_images(checker: _Checker, test: Split, verdicts: pd.DataFrame) -> RecheckResult:
    """Check the verdicts of the first images."""
    problems, proofs = list[str](), Counter[tuple[str, str]]()
    for start in range(0, len(verdicts), _BATCH):
        part = verdicts[start : start + _BATCH]
        pixels = test.images[start : start + len(part)].numpy().astype(np.float64)
        labels, radii = part[names.LABEL].to_numpy(), (0.0, float(checker.eps))
        clean, lower = (_smallest_margins(checker.network, ball(pixels, radius), labels) for radius in radii)
        for row, image, *margins in zip(part.to_dict("records"), pixels, clean, lower, strict=True):
            problem, proved_by = checker.check(row, image, *margins)
            problems += [problem] if problem else []
            if row[names.VERDICT] == names.CERTIFIED:
                proofs[row[names.STAGE], proved_by] += 1
    recorded = 100 * float((verdicts[names.VERDICT] != names.CERTIFIED).mean())
    confirmed = sum(count for (_, proved_by), count in proofs.items() if proved_by)
    error = 100 * ((len(verdicts) - confirmed) / len(verdicts))  # rounded as `recorded` is
    return RecheckResult(len(verdicts), len(test), problems, recorded, error, proofs)


def _smallest_margins(network: Network, images: Box, labels: Array) -> Array:
    """Return the smallest margin [B] of each image over its box by intervals, -inf without a proof."""
    try:
        margins = network.margins(network.boxes(images), labels).lower.min(1)
    except NotProvedError:
        return np.full(len(labels), -np.inf)
    return np.where(np.isnan(margins), -np.inf, margins)


def _contradiction(row: dict[str, Any], clean: float, lower: float) -> str:
    """Return how intervals contradict a row of the table of verdicts; empty if they do not."""
    verdict, recorded = row[names.VERDICT], float(row[_MARGIN])
    is_correct = row[names.PREDICTION] == row[names.LABEL]
    if is_correct == (verdict == names.MISCLASSIFIED):
        return f"{verdict}, though its prediction is {'its label' if is_correct else 'another class'}"
    if is_correct != (clean > 0):
        return f"recorded as {'correct' if is_correct else 'wrong'}, but at the image {_describe_bound(clean)}"
    if verdict == names.CERTIFIED and row[names.STAGE] == _IBP and not lower > 0:
        return f"certified by {_IBP}, but {_describe_bound(lower)}"
    if lower != recorded and not abs(lower - recorded) <= _AGREEMENT * (1 + abs(lower)):
        return f"{_IBP}'s margin is recorded as {recorded:.6g}, but {_describe_bound(lower)}"
    return ""


def _describe_bound(lower: float) -> str:
    return f"the smallest margin is bounded by {lower:.6g}"


def _evaluated_images(data: Data, config: TrialConfig, is_certification: bool) -> Split:
    """Return the images of all verdicts. A trial evaluates all of its held-out images, a certification the first."""
    _, held_out = data.training_images(config.train_images, config.validation_images)
    count = config.evaluation.test_images
    if held_out is None:
        return data.test_images(count)
    return held_out.part(0, count) if is_certification and count else held_out


def _load_network(path: Path, config: TrialConfig, test: Split) -> Network:
    try:
        model = load_network(config, path)
        if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
            raise InputError(f"{path}: a weight is not finite")
        network = Network(model)
        network.refuse_another_function(model, test.images[:2].double().numpy() / 255)
        return network
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except UnknownLayerError as error:
        raise InputError(f"{path}: {error} cannot be rechecked") from None


def _check_table(
    verdicts: pd.DataFrame, test: Split, metrics: dict[str, float | None], stages: tuple[str, ...]
) -> list[str]:
    """Return the problems of the table: other examples or labels, errors that do not follow from verdicts."""
    if list(verdicts[names.INDEX]) != list(range(len(test))):
        return [f"verdicts of {len(verdicts)} examples; there are {len(test)}"]
    if not pd.api.types.is_numeric_dtype(verdicts[_MARGIN]):
        return [f"{_MARGIN} holds no numbers"]
    verdict, stage = verdicts[names.VERDICT], verdicts[names.STAGE]
    certified = verdict == names.CERTIFIED
    wrong_label = verdicts[names.LABEL].to_numpy() != test.labels.numpy()
    problems = [f"image {index}: another label is recorded than the data has" for index in np.flatnonzero(wrong_label)]
    no_verdict, no_stage = verdict[~verdict.isin(names.VERDICTS)], stage[certified & ~stage.isin(stages)]
    problems += [f"image {index}: {value!r} is no verdict" for index, value in no_verdict.items()]
    problems += [
        f"image {index}: certified by {value!r}, which is no stage of this trial" for index, value in no_stage.items()
    ]
    is_error = {
        names.STANDARD_ERROR: verdict == names.MISCLASSIFIED,
        names.ATTACK_ERROR: verdict.isin([names.MISCLASSIFIED, names.FALSIFIED]),
        names.CERTIFIED_ERROR: ~certified,
        **{
            names.certified_by(last): ~(certified & stage.isin(stages[:number]))
            for number, last in enumerate(stages, start=1)
        },
    }
    if names.UNDECIDED_ERROR in metrics:  # which older results lack
        is_error[names.UNDECIDED_ERROR] = verdict.isin(names.UNDECIDED)
        is_error |= {names.share_of(kind): verdict == kind for kind in names.UNDECIDED}
    for name, mask in is_error.items():
        recorded, recomputed = metrics.get(name), 100 * float(mask.mean())
        if recorded is None or not abs(recorded - recomputed) <= 1e-6:
            problems.append(f"{name} is recorded as {recorded}, and is {recomputed} by its verdicts")
    return problems
