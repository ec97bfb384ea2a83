"""`python -m harness.recheck results/<sweep>`: prove a sweep's verdicts again from stored weights, images and labels.

The checker computes in NumPy, float64, with every rounding error counted outwards. It shares no code with training and
evaluation except the definitions of networks and the reading of files. It confirms

- predictions, and examples that IBP certified, by intervals;
- examples that later stages certified, by linear bounds or by the leaves of a certificate;
- falsified examples, by the stored counterexample.

A verdict without a proof is not confirmed. Certifications by `harness.certify` are rechecked like trials. The command
checks verdicts and the errors computed from them, not widths, times or the recipe. Exit status: 0 if all checked
verdicts and errors are confirmed, 1 if one is not, 2 for bad input.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError

from harness import command_line
from harness.checker.boxes import Array, Box, ball
from harness.checker.certificates import read as read_certificates
from harness.checker.equilibrium import NotProvedError
from harness.checker.maps import UnknownLayerError
from harness.checker.network import Network
from harness.checker.points import read as read_points
from harness.checker.points import why_not_falsified
from harness.checker.proofs import Proof, prove
from harness.command_line import FAILED, OK, add_data_dir, add_patterns, add_sweep_directory, select_by_pattern
from harness.config.plugins import load_for
from harness.config.trial import TrialConfig, labels
from harness.data import Split, load
from harness.errors import InputError, require
from harness.evaluation.network import load_network
from harness.storage import certification, folder, names
from harness.terminal import new_console, print_table

_IBP = "ibp"
_COLUMNS = [names.INDEX, names.LABEL, names.PREDICTION, names.VERDICT, names.STAGE, names.margin_column(_IBP)]
_BATCH, _SHOWN = 20, 5
_AGREEMENT = 1e-4  # allowed difference from recorded margins, relative to 1 + their size


@dataclass
class RecheckResult:
    """The result for one folder of verdicts.

    images, of: the number of checked verdicts, and of all verdicts.
    recorded, confirmed: the certified errors of the checked verdicts, in percent.
    proofs: the number of certified examples by stage and by what proved them, "" for not confirmed.
    problems: what is wrong or not confirmed, a line each.
    has_weights: whether the weights are stored.
    """

    images: int
    of: int
    recorded: float
    confirmed: float
    proofs: Counter[tuple[str, str]]
    seconds: float
    problems: list[str] = field(default_factory=list)
    has_weights: bool = True

    @property
    def is_confirmed(self) -> bool:
        """True if every checked verdict was confirmed."""
        return not self.problems

    @property
    def is_complete(self) -> bool:
        """True if every verdict was checked."""
        return self.images == self.of


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_sweep_directory(parser)
    add_patterns(parser, "--only", "only trials whose label or key")
    parser.add_argument("--images", type=int, help="recheck only the first IMAGES images of each trial; default: all")
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Run the command and return the exit status. Raises InputError without finished trials or with broken files."""
    require("--images", options.images, options.images is None or options.images >= 1, "at least 1")
    verdict_dirs = list(_find_verdict_dirs(options.directory))
    if not verdict_dirs:
        raise InputError(f"{options.directory} holds no finished trial")
    trials = list(dict.fromkeys(map(_trial_dir, verdict_dirs)))
    trial_labels = dict(zip(trials, labels([_trial(trial).config for trial in trials]), strict=True))
    if options.only:
        trials = select_by_pattern(
            "--only", options.only, {trial: (trial_labels[trial], trial.name) for trial in trials}
        )
    verdict_dirs = [verdict_dir for verdict_dir in verdict_dirs if _trial_dir(verdict_dir) in trials]
    for verdict_dir in verdict_dirs:  # all of them first: user code may be missing
        load_for(_trial(verdict_dir).config)
    console, rows = new_console(), list[list[str]]()
    lines, results = list[str](), list[RecheckResult]()
    for verdict_dir in verdict_dirs:
        label = trial_labels[_trial_dir(verdict_dir)] + _certification_suffix(verdict_dir)
        result = recheck(verdict_dir, options.data_dir, options.images)
        results.append(result)
        numbers = f"{result.recorded:.2f}", f"{result.confirmed:.2f}", f"{result.seconds:.0f}"
        images = f"{result.images:,}" if result.is_complete else f"{result.images:,} of {result.of:,}"
        rows.append([label, images, *numbers])
        lines += [f"{label}: {line}" for line in _describe(result)]
    print_table(console, ["trial", "images", "recorded", "confirmed", "seconds"], rows)
    console.print("recorded, confirmed: certified error in percent; what is not confirmed counts as an error")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    console.print(_summary(results), soft_wrap=True)
    return OK if all(result.is_confirmed for result in results) else FAILED


def _summary(results: list[RecheckResult]) -> str:
    """Return the last line of the output; trials without weights are counted apart."""
    with_weights = [result for result in results if result.has_weights]
    of_images = "" if all(result.is_complete for result in with_weights) else " of the images looked at"
    all_confirmed = all(result.is_confirmed for result in with_weights)
    message = f"every verdict{of_images} is confirmed" if all_confirmed else "some verdicts are not confirmed"
    if len(with_weights) == len(results):
        return message
    missing = len(results) - len(with_weights)
    without = f"{missing} of {len(results)} have no weights here, so that nothing confirms them"
    return f"of those with weights here, {message}; {without}" if with_weights else without


def _find_verdict_dirs(sweep: Path) -> Iterator[Path]:
    """Yield the folders of a sweep's finished trials, each followed by its finished certifications."""
    for trial in folder.trial_folders(sweep):
        verdict_dirs = [trial, *certification.folders(trial)]
        yield from (verdict_dir for verdict_dir in verdict_dirs if folder.read_result(verdict_dir) is not None)


def _trial_dir(verdict_dir: Path) -> Path:
    """Return the folder of the trial whose verdicts lie in a folder."""
    return certification.trial_of(verdict_dir) if (verdict_dir / certification.CERTIFICATION).exists() else verdict_dir


def _certification_suffix(verdict_dir: Path) -> str:
    """Return what a label needs in addition for a certification."""
    return "" if _trial_dir(verdict_dir) == verdict_dir else f", {verdict_dir.name}"


def _trial(verdict_dir: Path) -> folder.Trial:
    """Return the trial whose verdicts lie in a folder, its own or a certification's."""
    if _trial_dir(verdict_dir) == verdict_dir:
        return folder.read_trial(verdict_dir / folder.TRIAL)
    return folder.read_certified_trial(verdict_dir / certification.CERTIFICATION)


def recheck(verdict_dir: Path, data_dir: str | None = None, limit: int | None = None) -> RecheckResult:
    """Recheck the verdicts of a finished trial or certification in its folder.

    Args:
        data_dir: where data sets lie; default as for `load`.
        limit: how many verdicts to check, from the first; default: all.

    Raises:
        InputError: for unreadable files and other data than the trial's.
    """
    started, trial, result = time.monotonic(), _trial(verdict_dir), folder.read_result(verdict_dir)
    trial_dir = _trial_dir(verdict_dir)
    if result is None:
        raise InputError(f"{verdict_dir} is not finished")
    load_for(trial.config)
    config, data = trial.config, load(trial.config.dataset, data_dir)
    require("data", data.fingerprint, data.fingerprint == trial.fingerprint, f"the trial's data, {trial.fingerprint}")
    _, held_out = data.training_images(config.train_images, config.validation_images)
    test_images = config.evaluation.test_images
    test = held_out or data.test_images(test_images)
    if trial_dir != verdict_dir and held_out and test_images:  # a trial evaluates all of its held-out images
        test = held_out.part(0, test_images)
    verdicts, weights = folder.read_verdicts(verdict_dir, _COLUMNS), trial_dir / folder.WEIGHTS
    problems = _check_table(verdicts, test, result.metrics, config.evaluation.stages)
    own_config = folder.read_trial(trial_dir / folder.TRIAL).config
    if replace(own_config, evaluation=config.evaluation) != config:
        problems.append("it was certified as another trial than the one that it belongs to")
    unchecked = partial(RecheckResult, of=len(test), recorded=np.nan, confirmed=100.0, proofs=Counter())
    if problems:
        return unchecked(len(verdicts), seconds=time.monotonic() - started, problems=problems)
    if not weights.exists():
        problems = [f"{folder.WEIGHTS} is not stored here"]
        return unchecked(0, seconds=time.monotonic() - started, problems=problems, has_weights=False)
    network, eps, verdicts = _network(weights, config), float(config.eps), verdicts[:limit]
    points = read_points(verdict_dir / folder.COUNTEREXAMPLES)
    certificates = read_certificates(verdict_dir / folder.CERTIFICATES)
    proofs = Counter[tuple[str, str]]()
    for clean, lower, part in _bound_batches(network, test, verdicts, eps):
        for row, clean_margin, margin in zip(part.to_dict("records"), clean, lower, strict=True):
            problem, proved_by = _check_verdict(clean_margin, margin, row), _IBP
            certified = row[names.VERDICT] == names.CERTIFIED
            if certified and not problem and not margin > 0:
                index = int(row[names.INDEX])
                images = _ball(test, slice(index, index + 1), eps)
                proof = prove(network, images, int(row[names.LABEL]), certificates.get(index))
                problem, proved_by = _describe_missing_proof(row, proof), proof.proved_by
            elif row[names.VERDICT] == names.FALSIFIED and not problem:
                problem = _check_counterexample(network, test, row, points, config.eps)
            if certified:
                proofs[row[names.STAGE], "" if problem else proved_by] += 1
            problems += [problem] if problem else []
    recorded = 100 * float((verdicts[names.VERDICT] != names.CERTIFIED).mean())
    confirmed = sum(count for (_, proved_by), count in proofs.items() if proved_by)
    errors = 100 * ((len(verdicts) - confirmed) / len(verdicts))  # rounded as `recorded` is
    return RecheckResult(len(verdicts), len(test), recorded, errors, proofs, time.monotonic() - started, problems)


def _describe(result: RecheckResult) -> Iterator[str]:
    for stage in dict.fromkeys(stage for stage, _ in result.proofs):
        counts = {proved_by: count for (of, proved_by), count in result.proofs.items() if of == stage}
        ways = ", ".join(f"{count} by {proved_by}" for proved_by, count in counts.items() if proved_by) or "none"
        yield f"of {sum(counts.values())} certified by {stage}, confirmed: {ways}"
    yield from result.problems[:_SHOWN]
    if len(result.problems) > _SHOWN:
        yield f"and {len(result.problems) - _SHOWN} more"


def _describe_missing_proof(row: dict[str, object], proof: Proof) -> str:
    """Return the problem of an example without a proof; empty if there is one."""
    why = f"certificate refused: {proof.refused}" if proof.refused else f"found a least margin of {proof.minimum:.3g}"
    certified = f"image {row[names.INDEX]}: certified by {row[names.STAGE]}, not confirmed"
    return "" if proof.proved_by else f"{certified}, {why}"


def _check_counterexample(
    network: Network, test: Split, row: dict[str, object], points: dict[int, Array], eps: Fraction
) -> str:
    """Return the problem of a falsified example whose counterexample proves nothing; empty if it does."""
    index = int(str(row[names.INDEX]))
    pixels = test.images[index].numpy().astype(np.float64)
    why = why_not_falsified(network, pixels, int(str(row[names.LABEL])), points.get(index), eps)
    return f"image {index}: falsified, not confirmed, {why}" if why else ""


def _network(path: Path, config: TrialConfig) -> Network:
    try:
        network = load_network(config, path)
        if not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
            raise InputError(f"{path}: a weight is not finite")
        return Network(network)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except UnknownLayerError as error:
        raise InputError(f"{path}: {error} cannot be rechecked") from None


def _check_table(
    verdicts: pd.DataFrame, test: Split, metrics: dict[str, float | None], stages: tuple[str, ...]
) -> list[str]:
    """Return the problems of the whole table: other examples or labels, errors that do not follow from verdicts."""
    if list(verdicts[names.INDEX]) != list(range(len(test))):
        return [f"verdicts of {len(verdicts)} examples; there are {len(test)}"]
    if not pd.api.types.is_numeric_dtype(verdicts[names.margin_column(_IBP)]):
        return [f"{names.margin_column(_IBP)} holds no numbers"]
    wrong = np.flatnonzero(verdicts[names.LABEL].to_numpy() != test.labels.numpy())
    problems = [f"image {index}: another label is recorded than the data has" for index in wrong]
    others = verdicts.loc[~verdicts[names.VERDICT].isin(names.VERDICTS), names.VERDICT]
    problems += [f"image {index}: {kind!r} is no verdict" for index, kind in others.items()]
    errors = {
        names.STANDARD_ERROR: [names.MISCLASSIFIED],
        names.ATTACK_ERROR: [names.MISCLASSIFIED, names.FALSIFIED],
        names.CERTIFIED_ERROR: [names.MISCLASSIFIED, names.FALSIFIED, *names.UNDECIDED],
    }
    shares = {names.UNDECIDED_ERROR: list(names.UNDECIDED)} | {names.share_of(kind): [kind] for kind in names.UNDECIDED}
    errors |= {name: kinds for name, kinds in shares.items() if name in metrics}  # which older results lack
    recomputed = {name: 100 * float(verdicts[names.VERDICT].isin(kinds).mean()) for name, kinds in errors.items()}
    certified = verdicts[names.VERDICT] == names.CERTIFIED
    unknown = verdicts.loc[certified & ~verdicts[names.STAGE].isin(stages), names.STAGE]
    problems += [f"image {index}: certified by {stage!r}, no stage of its own" for index, stage in unknown.items()]
    for number, stage in enumerate(stages, start=1):
        proved_by = certified & verdicts[names.STAGE].isin(stages[:number])
        recomputed[names.certified_by(stage)] = 100 * float((~proved_by).mean())
    for name, error in recomputed.items():
        recorded = metrics.get(name)
        if recorded is None or abs(recorded - error) > 1e-6:
            problems.append(f"{name} is recorded as {recorded}, its verdicts make it {error}")
    return problems


def _bound_batches(
    network: Network, test: Split, verdicts: pd.DataFrame, eps: float
) -> Iterator[tuple[Array, Array, pd.DataFrame]]:
    """Yield the smallest margins [B] of images and over their balls, -inf without a proof, with the batch's rows."""
    for start in range(0, len(verdicts), _BATCH):
        part = verdicts[start : start + _BATCH]
        true_labels, images = part[names.LABEL].to_numpy(), slice(start, start + len(part))
        try:
            clean, lower = (network.margins(_ball(test, images, reach), true_labels).min(1) for reach in (0.0, eps))
        except NotProvedError:
            clean = lower = np.full(len(part), -np.inf)
        yield np.nan_to_num(clean, nan=-np.inf), np.nan_to_num(lower, nan=-np.inf), part


def _ball(test: Split, images: slice, eps: float) -> Box:
    return ball(test.images[images].numpy().astype(np.float64), eps)


def _check_verdict(clean: float, lower: float, row: dict[str, object]) -> str:
    """Return the problem of a verdict that intervals contradict; empty if there is none."""
    image, verdict, margin = f"image {row[names.INDEX]}", row[names.VERDICT], float(str(row[names.margin_column(_IBP)]))
    right = row[names.PREDICTION] == row[names.LABEL]
    if right == (verdict == names.MISCLASSIFIED):
        return f"{image}: {verdict}, though its prediction is {'its label' if right else 'another class'}"
    if right != (clean > 0):
        return f"{image}: recorded as {'right' if right else 'wrong'}, found a least margin of {clean:.3g}"
    if verdict == names.CERTIFIED and row[names.STAGE] == _IBP and not lower > 0:
        return f"{image}: certified by {_IBP}, found a least margin of {lower:.3g}"
    if lower != margin and not abs(lower - margin) <= _AGREEMENT * (1 + abs(lower)):
        return f"{image}: {_IBP}'s margin is recorded as {margin:.6g}, found {lower:.6g}"
    return ""


if __name__ == "__main__":
    raise SystemExit(command_line.main("recheck"))
