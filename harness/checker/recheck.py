"""`python -m harness.recheck results/<sweep>`: are its verdicts true of the stored weights, images and labels?

They are proved again in NumPy, float64, every rounding error counted outwards, by code that shares nothing with what
trained and judged but the networks' definitions and the reading of files: predictions and what IBP certified by
intervals; what later stages certified by linear bounds, or leaf by leaf of a certificate where there is one; what was
attacked by the counterexample that was kept. What is not proved is not confirmed. Certifications by `harness.certify`
are rechecked as trials are. It vouches for verdicts and the errors made of them, not for widths, times or the recipe.
Exit status: 0 all that was looked at is confirmed; 1 some verdict, or some error made of verdicts, is not; 2 bad input.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError

from harness.checker.boxes import Array, Box, ball
from harness.checker.certificates import read as certificates_of
from harness.checker.equilibrium import NotProvedError
from harness.checker.maps import UnknownLayerError
from harness.checker.network import Network
from harness.checker.points import read as points_of
from harness.checker.points import why_not_broken
from harness.checker.proofs import Proof, prove
from harness.command_line import FAILED, OK, add_data_dir, add_patterns, add_sweep_directory, meant
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
_AGREEMENT = 1e-4  # of margins with what was recorded, relative to 1 + their size


@dataclass
class Rechecked:
    """What a trial's verdicts came to.

    images: how many were looked at, of so many. recorded, confirmed: their certified errors, in percent.
    proofs: how many examples each stage certified that are confirmed, (stage, by what) to a count; by "" those that
    are not. problems: what is not true or not confirmed, a line each. kept: whether the weights are.
    """

    images: int
    of: int
    recorded: float
    confirmed: float
    proofs: Counter[tuple[str, str]]
    seconds: float
    problems: list[str] = field(default_factory=list)
    kept: bool = True

    @property
    def agrees(self) -> bool:
        """Whether every verdict that was looked at was confirmed."""
        return not self.problems

    @property
    def whole(self) -> bool:
        """Whether all of them were looked at."""
        return self.images == self.of


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_sweep_directory(parser)
    add_patterns(parser, "--only", "only trials whose label or key")
    parser.add_argument("--images", type=int, help="recheck the first so many of each trial; default: all")
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises InputError where there is nothing to recheck or a file cannot be read."""
    require("--images", options.images, options.images is None or options.images >= 1, "at least 1")
    places = list(_judged(options.directory))
    if not places:
        raise InputError(f"{options.directory} holds no finished trial")
    trials = list(dict.fromkeys(map(_owner, places)))
    words = dict(zip(trials, labels([_trial(trial).config for trial in trials]), strict=True))
    if options.only:
        trials = meant("--only", options.only, {trial: (words[trial], trial.name) for trial in trials})
    places = [place for place in places if _owner(place) in trials]
    owners = [_owner(place) for place in places]
    for place in places:
        load_for(_trial(place).config)
    shown = [words[owner] + _further(place) for owner, place in zip(owners, places, strict=True)]
    console, rows = new_console(), list[list[str]]()
    told, all_found = list[str](), list[Rechecked]()
    for place, label in zip(places, shown, strict=True):
        found = recheck(place, options.data_dir, options.images)
        all_found.append(found)
        numbers = f"{found.recorded:.2f}", f"{found.confirmed:.2f}", f"{found.seconds:.0f}"
        images = f"{found.images:,}" if found.whole else f"{found.images:,} of {found.of:,}"
        rows.append([label, images, *numbers])
        told += [f"{label}: {line}" for line in _told(found)]
    print_table(console, ["trial", "images", "recorded", "confirmed", "seconds"], rows)
    console.print("recorded, confirmed: certified error in percent; what is not confirmed counts as an error")
    for line in told:
        console.print(line, markup=False, soft_wrap=True)
    console.print(_summary(all_found), soft_wrap=True)
    return OK if all(found.agrees for found in all_found) else FAILED


def _summary(all_found: list[Rechecked]) -> str:
    """What they come to, those without weights apart."""
    looked = [found for found in all_found if found.kept]
    of_images = "" if all(found.whole for found in looked) else " of the images looked at"
    agree = all(found.agrees for found in looked)
    said = f"every verdict{of_images} is confirmed" if agree else "some verdicts are not confirmed"
    if len(looked) == len(all_found):
        return said
    lacking = f"{len(all_found) - len(looked)} of {len(all_found)} have no weights here, so that nothing confirms them"
    return f"of those with weights here, {said}; {lacking}" if looked else lacking


def _judged(sweep: Path) -> Iterator[Path]:
    """The folders of a sweep's finished trials, each with its finished certifications."""
    for trial in folder.trial_folders(sweep):
        places = [trial, *certification.folders(trial)]
        yield from (place for place in places if folder.read_result(place) is not None)


def _owner(place: Path) -> Path:
    """The folder of the trial that is judged in a folder."""
    return certification.trial_of(place) if (place / certification.CERTIFICATION).exists() else place


def _further(place: Path) -> str:
    """What sets a certification apart from the trial's own verdicts, in words."""
    return "" if _owner(place) == place else f", {place.name}"


def _trial(place: Path) -> folder.Trial:
    """The trial that is judged in a folder, its own or a certification's."""
    if _owner(place) == place:
        return folder.read_trial(place / folder.TRIAL)
    return folder.read_judged(place / certification.CERTIFICATION)


def recheck(place: Path, data_dir: str | None = None, most: int | None = None) -> Rechecked:
    """Recheck the first `most` verdicts of the finished trial, or certification, in a folder.

    Raises InputError for unreadable files.
    """
    started, trial, result = time.monotonic(), _trial(place), folder.read_result(place)
    if result is None:
        raise InputError(f"{place} is not finished")
    load_for(trial.config)
    config, data = trial.config, load(trial.config.dataset, data_dir)
    require("data", data.fingerprint, data.fingerprint == trial.fingerprint, f"the trial's data, {trial.fingerprint}")
    _, held_out = data.training_images(config.train_images, config.validation_images)
    wanted, further = config.evaluation.test_images, _owner(place) != place
    test = held_out or data.test_images(wanted)
    if further and held_out and wanted:  # a trial judges all that it holds out
        test = held_out.part(0, wanted)
    verdicts, weights = folder.read_verdicts(place, _COLUMNS), _owner(place) / folder.WEIGHTS
    problems = _of_the_table(verdicts, test, result.metrics, config.evaluation.stages)
    if replace(folder.read_trial(_owner(place) / folder.TRIAL).config, evaluation=config.evaluation) != config:
        problems.append("it was certified as another trial than the one that it belongs to")
    if problems:
        return Rechecked(len(verdicts), len(test), np.nan, 100.0, Counter(), time.monotonic() - started, problems)
    if not weights.exists():
        nothing = f"{folder.WEIGHTS} is not kept here"
        return Rechecked(0, len(test), np.nan, 100.0, Counter(), time.monotonic() - started, [nothing], kept=False)
    network, eps, verdicts = _network(weights, config), float(config.eps), verdicts[:most]
    points, certificates = points_of(place / folder.COUNTEREXAMPLES), certificates_of(place / folder.CERTIFICATES)
    proofs = Counter[tuple[str, str]]()
    for clean, lower, part in _bounds(network, test, verdicts, eps):
        for row, own, over in zip(part.to_dict("records"), clean, lower, strict=True):
            problem, by, certified = _problem(own, over, row), _IBP, row[names.VERDICT] == names.CERTIFIED
            if certified and not problem and not over > 0:
                index = int(row[names.INDEX])
                images = _ball(test, slice(index, index + 1), eps)
                proof = prove(network, images, int(row[names.LABEL]), certificates.get(index))
                problem, by = _unproved(row, proof), proof.by
            elif row[names.VERDICT] == names.ATTACKED and not problem:
                problem = _unbroken(network, test, row, points, config.eps)
            if certified:
                proofs[row[names.STAGE], "" if problem else by] += 1
            problems += [problem] if problem else []
    recorded = 100 * float((verdicts[names.VERDICT] != names.CERTIFIED).mean())
    confirmed = sum(count for (_, by), count in proofs.items() if by)
    errors = 100 * ((len(verdicts) - confirmed) / len(verdicts))  # rounded as `recorded` is
    return Rechecked(len(verdicts), len(test), recorded, errors, proofs, time.monotonic() - started, problems)


def _told(found: Rechecked) -> Iterator[str]:
    for stage in dict.fromkeys(stage for stage, _ in found.proofs):
        counts = {by: count for (of, by), count in found.proofs.items() if of == stage}
        ways = ", ".join(f"{count} by {by}" for by, count in counts.items() if by) or "none"
        yield f"of {sum(counts.values())} certified by {stage}, confirmed: {ways}"
    yield from found.problems[:_SHOWN]
    if len(found.problems) > _SHOWN:
        yield f"and {len(found.problems) - _SHOWN} more"


def _unproved(row: dict[str, object], proof: Proof) -> str:
    """What is to be told of an example without a proof; empty where there is one."""
    why = f"certificate refused: {proof.refused}" if proof.refused else f"found a least margin of {proof.least:.3g}"
    certified = f"image {row[names.INDEX]}: certified by {row[names.STAGE]}, not confirmed"
    return "" if proof.by else f"{certified}, {why}"


def _unbroken(network: Network, test: Split, row: dict[str, object], points: dict[int, Array], eps: Fraction) -> str:
    """What is to be told of an attacked example that is not shown to be broken; empty where it is."""
    index = int(str(row[names.INDEX]))
    pixels = test.images[index].numpy().astype(np.float64)
    why = why_not_broken(network, pixels, int(str(row[names.LABEL])), points.get(index), eps)
    return f"image {index}: attacked, not confirmed, {why}" if why else ""


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


def _of_the_table(
    verdicts: pd.DataFrame, test: Split, metrics: dict[str, float | None], stages: tuple[str, ...]
) -> list[str]:
    """What is wrong with the table as a whole: other examples, other labels, numbers that do not follow from it."""
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
        names.ATTACK_ERROR: [names.MISCLASSIFIED, names.ATTACKED],
        names.CERTIFIED_ERROR: [names.MISCLASSIFIED, names.ATTACKED, *names.OPEN],
    }
    shares = {names.OPEN_ERROR: list(names.OPEN)} | {names.share_of(kind): [kind] for kind in names.OPEN}
    errors |= {name: kinds for name, kinds in shares.items() if name in metrics}  # which older results lack
    found = {name: 100 * float(verdicts[names.VERDICT].isin(kinds).mean()) for name, kinds in errors.items()}
    certified = verdicts[names.VERDICT] == names.CERTIFIED
    unknown = verdicts.loc[certified & ~verdicts[names.STAGE].isin(stages), names.STAGE]
    problems += [f"image {index}: certified by {stage!r}, no stage of its own" for index, stage in unknown.items()]
    for number, stage in enumerate(stages, start=1):
        by = certified & verdicts[names.STAGE].isin(stages[:number])
        found[names.certified_by(stage)] = 100 * float((~by).mean())
    for name, error in found.items():
        recorded = metrics.get(name)
        if recorded is None or abs(recorded - error) > 1e-6:
            problems.append(f"{name} is recorded as {recorded}, its verdicts make it {error}")
    return problems


def _bounds(
    network: Network, test: Split, verdicts: pd.DataFrame, eps: float
) -> Iterator[tuple[Array, Array, pd.DataFrame]]:
    """The least margin [B] of each image itself and over its ball, with the rows of a batch; -inf without any proof."""
    for start in range(0, len(verdicts), _BATCH):
        part = verdicts[start : start + _BATCH]
        known, images = part[names.LABEL].to_numpy(), slice(start, start + len(part))
        try:
            clean, lower = (network.margins(_ball(test, images, reach), known).min(1) for reach in (0.0, eps))
        except NotProvedError:
            clean = lower = np.full(len(part), -np.inf)
        yield np.nan_to_num(clean, nan=-np.inf), np.nan_to_num(lower, nan=-np.inf), part


def _ball(test: Split, images: slice, eps: float) -> Box:
    return ball(test.images[images].numpy().astype(np.float64), eps)


def _problem(clean: float, lower: float, row: dict[str, object]) -> str:
    """What is not true of a verdict; empty where it is."""
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
