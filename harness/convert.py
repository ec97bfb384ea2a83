"""`python -m harness.convert results/<sweep>`: convert results of an older version, in place.

There, a folder trials/<key>/ has a network with its evaluation, and certified/<name>/ in it a further evaluation. They
become networks/<key>/ and evaluations/<key>/ in it, under today's keys. Unfinished training goes on from its
checkpoint, unfinished evaluations begin anew. Trials of one training become one network if their weights are equal.

What cannot be converted is moved to not_converted/, with a line that says why. Sweeps below the directory are
converted, too. If the command is stopped, the same command continues.
"""

import argparse
import os
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import command_line
from harness.command_line import FAILED, OK, add_sweep_directory
from harness.common import names
from harness.common.errors import InputError, require
from harness.common.models import validate
from harness.common.terminal import say, with_plural
from harness.config.training import RECIPE_VERSION, Training
from harness.pretrained.network_file import TRAINED_ELSEWHERE, digest_of
from harness.settings import Evaluation
from harness.storage import folder, ranges
from harness.storage.files import parse_json, read_bytes, write_json
from harness.storage.lock import lock_directory
from harness.storage.records import Result, TrainingRecord, make_record, record_json

# What imports pandas is imported late: it takes seconds.
_TRIAL, _CERTIFIED, _CERTIFICATION = "trial.json", "certified", "certification.json"
_LEFT_OUT = "not_converted"
_OF_TRAINING = (names.GAIN, names.MARGIN, names.PARAMETERS, names.TRAIN_SECONDS)
_WARNS_OF_EVALUATION = r"(evaluated images|collapsed|no certificate|not finite|(out of memory|failed) in \S+): "


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's argument."""
    add_sweep_directory(parser)


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    sweep_dirs = {path.parents[2] for path in options.directory.rglob(f"{folder.OLD_TRIALS}/*/*.json")}
    if not sweep_dirs:
        say(f"{options.directory} holds no trials of an older version")
    return OK if all([_convert_sweep(path) for path in sorted(sweep_dirs)]) else FAILED


def _convert_sweep(sweep_dir: Path) -> bool:
    """Convert the trials of a sweep and write its leaderboard. Print what was left out; return whether nothing was."""
    from harness.leaderboard.files import write_leaderboard

    left_out = list[str]()
    with lock_directory(sweep_dir):
        for trial_dir in sorted(folder.old_trial_folders(sweep_dir), key=_order):
            try:
                if (trial_dir / _TRIAL).exists():
                    _convert_files(trial_dir)
                _move(trial_dir, sweep_dir)
            except InputError as error:
                to = sweep_dir / _LEFT_OUT / trial_dir.name
                to.parent.mkdir(exist_ok=True)
                trial_dir.rename(to)
                left_out.append(f"{to}: {' '.join(str(error).split())}")
        with suppress(OSError):  # it has more than trials
            (sweep_dir / folder.OLD_TRIALS).rmdir()
        if network_dirs := folder.network_folders(sweep_dir):
            write_leaderboard(sweep_dir)
    say(f"{sweep_dir}: {with_plural(len(network_dirs), 'network')}", *left_out)
    return not left_out


def _order(trial_dir: Path) -> tuple[bool, bool]:
    """Sort finished trials first, then those evaluated as the sweep file says: the first one's evaluation is main."""
    is_finished = any((trial_dir / name).exists() for name in (folder.RESULT, folder.TRAINED))
    trial = trial_dir / _TRIAL
    return not is_finished, trial.exists() and b" --set evaluation" in trial.read_bytes()


def _convert_files(trial_dir: Path) -> None:
    """Give a trial's folder the files of a network; trial.json is removed last. Raises InputError."""
    record, main, profile = parse_json(trial_dir / _TRIAL, _parse_trial)
    weights = _digest(trial_dir)
    if (result := folder.read_result(trial_dir)) is not None:
        folder.write_trained(trial_dir, _trained(record, result))
    for path in trial_dir.glob(f"{_CERTIFIED}/*/{_CERTIFICATION}"):
        evaluated = parse_json(path, lambda content: content.get("weights", weights))
        _move_evaluation(path.parent, trial_dir, parse_json(path, _parse_trial)[1], evaluated)
    if main.split == "validation":
        main = main.replace(test_images=None)  # a trial's own evaluation was of all that are held out
    _move_evaluation(trial_dir, trial_dir, main, weights)
    folder.add_to_study(trial_dir, profile, main)
    write_json(trial_dir / folder.TRAINING, record_json(record))
    ranges.remove_ranges(trial_dir)
    shutil.rmtree(trial_dir / _CERTIFIED, ignore_errors=True)
    (trial_dir / folder.RESULT).unlink(missing_ok=True)
    (trial_dir / _TRIAL).unlink()


def _parse_trial(content: Any) -> tuple[TrainingRecord, Evaluation, str]:
    """Return the network, the evaluation and the profile of trial.json or certification.json. Raises InputError."""
    version, config = content["recipe_version"], content["config"]
    require("recipe_version", version, version == RECIPE_VERSION, f"{RECIPE_VERSION}, today's; run the sweep again")
    training = {name: config[name] for name in Training.model_fields if config.get(name) is not None}
    training["train"] = config["train"] | {"eps": config["train"].get("eps") or config["eps"]}
    if config["method"] == TRAINED_ELSEWHERE:
        training = {name: value for name, value in training.items() if name not in ("train", "train_images")}
    settings = {name.replace("bab_trial_", "bab_total_"): value for name, value in config["evaluation"].items()}
    evaluation = settings | {"eps": config["eps"], "split": "validation" if config["validation_images"] else "test"}
    record = make_record(validate(Training, training, is_json=True), content["fingerprint"])
    profile = re.sub(r" --set evaluation\S*", "", config["profile"])
    return record, validate(Evaluation, evaluation, is_json=True), profile


def _trained(record: TrainingRecord, result: Result) -> Result:
    """Return what trained.json holds of a trial's result."""
    environment = result.environment | {"device": result.environment.get("trained_on", result.environment["device"])}
    return replace(
        result,
        key=record.key,
        metrics={name: result.metrics[name] for name in _OF_TRAINING if name in result.metrics},
        weights="",  # `write_trained` sets it where there are weights
        verdicts="",
        environment={} if record.config.is_trained_elsewhere else environment,
        warnings=[warning for warning in result.warnings if not re.match(_WARNS_OF_EVALUATION, warning)],
    )


def _move_evaluation(source: Path, network_dir: Path, evaluation: Evaluation, weights: str) -> None:
    """Move verdicts, proofs and result of an evaluation to its folder. weights: the SHA-256; empty if they are gone."""
    directory = folder.begin_evaluation(network_dir, evaluation, weights)
    for name in (folder.COUNTEREXAMPLES, folder.CERTIFICATES):
        if (source / name).exists():
            os.replace(source / name, directory / name)
    if (source / folder.VERDICTS).exists():
        from harness.storage.parquet import read_table, write_table

        table = read_table(source / folder.VERDICTS).assign(**{names.TAKEN_FROM: ""})
        write_table(directory / folder.VERDICTS, table)
        (source / folder.VERDICTS).unlink()
    trained, result = folder.read_trained(network_dir), folder.read_result(source)
    if trained is not None and result is not None:
        key, metrics = f"{trained.key}/{evaluation.key}", trained.metrics | result.metrics
        folder.write_result(directory, replace(result, key=key, metrics=metrics, weights=weights))


def _move(trial_dir: Path, sweep_dir: Path) -> None:
    """Move a network's folder below `networks`, or its evaluations to that of the same network.

    Raises InputError if that one has other weights, or one of both is untrained.
    """
    to = folder.network_dir(sweep_dir, folder.read_training(trial_dir / folder.TRAINING).key)
    if not to.exists():
        to.parent.mkdir(exist_ok=True)
        trial_dir.rename(to)
        return
    are_trained = all((path / folder.TRAINED).exists() for path in (to, trial_dir))
    is_same = are_trained and _digest(to) == _digest(trial_dir)
    require("weights", _digest(trial_dir), is_same, f"those of the same training in {to}")
    for path in folder.evaluation_folders(trial_dir):
        if not (to / path.relative_to(trial_dir)).exists():
            path.rename(to / path.relative_to(trial_dir))
    write_json(to / folder.STUDY, folder.read_study(trial_dir) | folder.read_study(to))
    shutil.rmtree(trial_dir.rename(to / f".{trial_dir.name}"))


def _digest(network_dir: Path) -> str:
    """Return the SHA-256 of a network's weights; empty if they are not there."""
    path = network_dir / folder.WEIGHTS
    return digest_of(read_bytes(path)) if path.exists() else ""


if __name__ == "__main__":
    raise SystemExit(command_line.main("convert"))
