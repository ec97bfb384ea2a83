"""The folders of networks and of their evaluations: the only truth about them. What their JSON files hold: records.py.

results/<sweep>/networks/<key>/
    training.json        key, recipe version, data fingerprint, config
    study.json           by profile of the sweep file: the key of the network's main evaluation
    epochs.jsonl         one line for each epoch; epoch 0 is the untrained network
    checkpoint.pt        training: network, optimiser, epoch: a retry goes on from here and writes later rows again
    saved_epochs.txt     how many epochs the checkpoint has
    steps.json           whether steps are compiled, and in which precision, as decided before the first one
    training_warnings.txt   training: why it is slower than it could be, one per line; until the end
    trained_on.txt       devices that it was trained on, one per line
    weights.safetensors  the final network, parametrisations folded in
    trained.json         written last: a folder without it is untrained
    log.txt              log messages with times
    failure.json         why training failed
    chosen.json          how a search chose the settings, if it did
    mlflow.json          what MLflow has of the network: written by the driver (harness.tracking)
    teacher.txt          empty: others learn from the network, which has no row unless a study has it, too
    source.checkpoint    the file that the weights of a network trained elsewhere come from
    evaluations/<key>/
        evaluation.json  key, version, config
        ranges/          ranges of images that are evaluated so far (harness.storage.ranges); until the end
        verdicts.parquet one row for each image
        counterexamples.safetensors   adversarial images by index (harness.attacks.counterexamples)
        certificates.safetensors   of images that branch and bound or a search for slopes certified, if any
        result.json      written last: a folder without it is unfinished
        log.txt, failure.json   as above

Every file but epochs.jsonl is written atomically. Who does the work writes result.json, trained.json and failure.json;
the driver writes failure.json if a worker died.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from harness.common.errors import InputError, require
from harness.common.masking import mask_secrets
from harness.common.models import validate
from harness.pretrained.network_file import NetworkFile, digest_of, read_file
from harness.settings import EVALUATION_VERSION, Evaluation
from harness.storage import records
from harness.storage.files import DamagedFileError, parse_json, read_bytes, write_bytes, write_json
from harness.storage.ranges import RANGES
from harness.storage.records import Chosen, EvaluationRecord, Failure, Result, TrainingRecord, record_json

T = TypeVar("T")

NETWORKS, EVALUATIONS = "networks", "evaluations"
"""Folders of a sweep's directory, and of a network's."""
TRAINING, STUDY, TRAINED = "training.json", "study.json", "trained.json"
EPOCHS, WEIGHTS = "epochs.jsonl", "weights.safetensors"
CHECKPOINT, SAVED_EPOCHS = "checkpoint.pt", "saved_epochs.txt"
EVALUATION, VERDICTS, RESULT = "evaluation.json", "verdicts.parquet", "result.json"
FAILURE, LOG = "failure.json", "log.txt"
CHOSEN = "chosen.json"
TEACHER = "teacher.txt"
STEPS, TRAINING_WARNINGS = "steps.json", "training_warnings.txt"
TRAINED_ON = "trained_on.txt"
NETWORK_FILE = "source.checkpoint"  # with the weights of a network trained elsewhere
_WRITTEN_IN_TRAINING = (LOG, EPOCHS, CHECKPOINT, WEIGHTS, TRAINED, FAILURE)
_WRITTEN_IN_EVALUATION = (LOG, RESULT, FAILURE)
REPORT, FIGURES = "report.html", "figures"
"""In the sweep's directory: its page, and the folder of the page's figures for LaTeX."""
COUNTEREXAMPLES = "counterexamples.safetensors"
CERTIFICATES = "certificates.safetensors"
_OLD_TRIALS = "trials"
"""The folder of a sweep's directory before networks and evaluations had keys of their own."""


def network_dir(sweep_dir: Path, key: str) -> Path:
    """Return the folder of the network `key` in a sweep's directory. Raises SettingError if the key is no file name."""
    records.require_name(key)
    return sweep_dir / NETWORKS / key


def evaluation_dir(network_dir: Path, evaluation: Evaluation) -> Path:
    """Return the folder of an evaluation of a network."""
    return network_dir / EVALUATIONS / evaluation.key


def network_of(evaluation_dir: Path) -> Path:
    """Return the folder of the network that an evaluation's folder belongs to."""
    return evaluation_dir.parents[1]


def sweep_dir_of(path: Path) -> Path:
    """Return the directory of the sweep that a network's folder lies in, or `path` if it is not below `networks`."""
    path = path.absolute()
    return path.parents[1] if path.parent.name == NETWORKS else path


def network_folders(sweep_dir: Path, teachers: bool = False) -> list[Path]:
    """Return all networks' folders of a sweep, by name; a folder without training.json is none.

    teachers: also those that no study has and nothing evaluates. Raises InputError for a directory of an older version.
    """
    refuse_older(sweep_dir)
    found = sorted(path.parent for path in sweep_dir.glob(f"{NETWORKS}/*/{TRAINING}"))
    return [path for path in found if teachers or not is_only_teacher(path)]


def is_only_teacher(network_dir: Path) -> bool:
    """Return whether a network is there as a teacher alone: no study has it, and nothing evaluates it."""
    return (network_dir / TEACHER).exists() and not any((network_dir / name).exists() for name in (STUDY, EVALUATIONS))


def evaluation_folders(network_dir: Path) -> list[Path]:
    """Return the folders of all evaluations of a network, by name."""
    return sorted(path.parent for path in network_dir.glob(f"{EVALUATIONS}/*/{EVALUATION}"))


def refuse_older(sweep_dir: Path) -> None:
    """Raise InputError if a directory has trials of an older version."""
    if any(sweep_dir.glob(f"{_OLD_TRIALS}/*/*.json")):
        todo = "run the sweep again, or use that version (git worktree add DIR COMMIT: see results/ARTEFACTS.md)"
        raise InputError(f"{sweep_dir / _OLD_TRIALS} is of an older version: {todo}")


def begin_network(
    directory: Path, record: TrainingRecord, profile: str = "", evaluations: Sequence[Evaluation] = ()
) -> None:
    """Make `directory` the network's folder, with today's sources, and in it the folders of evaluations.

    evaluations: of a study under `profile`, the main one first. Raises SettingError if it is another network's, or the
    data has changed.
    """
    path = directory / TRAINING
    before = read_training(path) if path.exists() else None
    if before is not None and before.config == record.config:
        made_for, found = before.fingerprint, record.fingerprint
        require("data", found, found == made_for, f"the data this network was made for, {made_for}")
    key = before.key if before else record.key
    allowed = f"an empty folder or that of network {record.key}; it holds {key}"
    require("directory", str(directory), key == record.key, allowed)
    if before is None or record_json(before) != record_json(record):
        write_json(path, record_json(record))
    if evaluations:
        add_to_study(directory, profile, evaluations[0])
    for evaluation in evaluations:
        begin_evaluation(directory, evaluation)


def begin_evaluation(network_dir: Path, evaluation: Evaluation, weights: str = "") -> Path:
    """Make the folder of an evaluation of a network, and return it; a result of other weights or versions is removed.

    weights: the SHA-256 of the network's; empty before there are any.
    """
    directory = evaluation_dir(network_dir, evaluation)
    before = read_evaluation(directory) if (directory / EVALUATION).exists() else None
    is_today = before is not None and before.version == EVALUATION_VERSION
    if not is_today or (weights and (result := read_result(directory)) and result.weights != weights):
        (directory / RESULT).unlink(missing_ok=True)
    if not is_today:
        record = EvaluationRecord(evaluation.key, EVALUATION_VERSION, evaluation)
        write_json(directory / EVALUATION, record_json(record))
    return directory


def add_to_study(network_dir: Path, profile: str, main: Evaluation) -> None:
    """Note that a sweep file under a profile has the network, and its main evaluation there, as the last of all."""
    before = read_study(network_dir)
    after = {name: key for name, key in before.items() if name != profile} | {profile: main.key}
    if list(after.items()) != list(before.items()):
        write_json(network_dir / STUDY, after)


def copy_network_file(network_file: NetworkFile, path: Path, to: Path) -> None:
    """Copy the file of a network trained elsewhere. Raises InputError if there is none, or another one."""
    if not (to.exists() and digest_of(read_bytes(to)) == network_file.sha256):
        write_bytes(to, read_file(path, network_file))


def read_training(path: Path) -> TrainingRecord:
    """Read training.json. Raises DamagedFileError if it is missing or damaged, or its key is another one's."""
    return parse_json(path, records.parse_training)


def read_evaluation(evaluation_dir: Path) -> EvaluationRecord:
    """Read evaluation.json. Raises DamagedFileError if it is missing or damaged, or its key is another one's."""
    return parse_json(evaluation_dir / EVALUATION, records.parse_evaluation)


def read_study(network_dir: Path) -> dict[str, str]:
    """Return the key of the network's main evaluation by profile of the sweep file, none if no study has it.

    Raises DamagedFileError.
    """
    return _parse_if_there(network_dir / STUDY, records.parse_study) or {}


def read_trained(network_dir: Path) -> Result | None:
    """Read what came of training, None if the network is untrained. Raises DamagedFileError."""
    return _parse_if_there(network_dir / TRAINED, records.parse_result)


def read_result(evaluation_dir: Path) -> Result | None:
    """Read the result of an evaluation, None if it is unfinished. Raises DamagedFileError."""
    return _parse_if_there(evaluation_dir / RESULT, records.parse_result)


def read_failure(directory: Path) -> Failure | None:
    """Read why training or an evaluation failed, None if it did not. Raises DamagedFileError."""
    return _parse_if_there(directory / FAILURE, partial(validate, Failure))


def read_choices(network_dir: Path) -> list[Chosen]:
    """Read what `write_choice` wrote, one for each search that chose the network. Raises DamagedFileError."""
    return _parse_if_there(network_dir / CHOSEN, records.parse_choices) or []


def _parse_if_there(path: Path, parse: Callable[[Any], T]) -> T | None:
    return parse_json(path, parse) if os.path.lexists(path) else None  # a broken link is damage


def main_evaluation(network_dir: Path) -> Evaluation:
    """Return the main evaluation of a network in the last study that had it, or any if it is in none.

    Raises InputError if it has no evaluation, DamagedFileError if one cannot be read.
    """
    evaluations = [read_evaluation(path) for path in evaluation_folders(network_dir)]
    if not evaluations:
        raise InputError(f"{network_dir}: no {EVALUATIONS}/*/{EVALUATION} says how it is evaluated")
    by_key = {record.key: record.config for record in evaluations}
    mains = reversed(read_study(network_dir).values())
    return next((by_key[key] for key in mains if key in by_key), evaluations[0].config)


def is_trained(network_dir: Path) -> bool:
    """Return whether a network has weights, and training has ended."""
    return all((network_dir / name).exists() for name in (TRAINED, WEIGHTS))


def read_trained_weights(network_dir: Path) -> tuple[bytes, str]:
    """Return the content of a trained network's file of weights, and its SHA-256.

    Raises DamagedFileError if it is missing, or is not the one that training wrote.
    """
    content, trained = read_bytes(network_dir / WEIGHTS), read_trained(network_dir)
    digest = digest_of(content)
    if trained is not None and trained.weights not in ("", digest):  # empty in results of older versions
        advice = "put the right file back, or remove the network's folder to train it again"
        raise DamagedFileError(f"{network_dir / WEIGHTS} is not the file of which {TRAINED} has the SHA-256; {advice}")
    return content, digest


def check_verdicts(evaluation_dir: Path, result: Result) -> None:
    """Raise DamagedFileError for a table of verdicts that is missing, or is not the one that the result is of."""
    if result.verdicts not in ("", digest_of(read_bytes(evaluation_dir / VERDICTS))):  # empty in older results
        raise DamagedFileError(f"{evaluation_dir / VERDICTS} is not the file of which {RESULT} has the SHA-256")


def last_write(evaluation_dir: Path) -> float | None:
    """Return when the network or its evaluation last wrote a file, in seconds since 1970; None before either begins."""
    paths = [network_of(evaluation_dir) / name for name in _WRITTEN_IN_TRAINING]
    paths += [*(evaluation_dir / name for name in _WRITTEN_IN_EVALUATION), *evaluation_dir.glob(f"{RANGES}/*")]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=None)


def write_trained(network_dir: Path, result: Result) -> None:
    """Write trained.json, the last file of a training, with the SHA-256 of the weights where they are."""
    path = network_dir / WEIGHTS
    weights = digest_of(read_bytes(path)) if path.exists() else result.weights
    write_json(network_dir / TRAINED, asdict(replace(result, weights=weights)))


def write_result(evaluation_dir: Path, result: Result) -> None:
    """Write result.json, the last file of an evaluation, with the SHA-256 of the verdicts where they are."""
    path = evaluation_dir / VERDICTS
    verdicts = digest_of(read_bytes(path)) if path.exists() else ""
    write_json(evaluation_dir / RESULT, asdict(replace(result, verdicts=verdicts)))


def write_failure(
    directory: Path, error: str, last_finite: dict[str, Any] | None = None, repeats: bool = False
) -> None:
    """Write why training or an evaluation failed, as `Failure` has it."""
    failure = Failure(error=mask_secrets(error), last_finite=last_finite or {}, repeats=repeats)
    write_json(directory / FAILURE, failure.model_dump())


def write_choice(network_dir: Path, content: dict[str, Any]) -> None:
    """Mark the network as chosen by a search, beside others that chose it, too. content: as `records.Chosen` has it."""
    choices = {each.search: each.model_dump(exclude_defaults=True) for each in read_choices(network_dir)}
    write_json(network_dir / CHOSEN, list((choices | {content["search"]: content}).values()))
