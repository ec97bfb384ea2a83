"""A trial's folder, results/<sweep>/trials/<key>/, the only truth about a trial.

    trial.json           key, recipe version, data fingerprint, config
    epochs.jsonl         one line for each epoch; epoch 0 is the untrained network
    checkpoint.pt        training: network, optimiser, epoch: a retry goes on from here and writes later rows again
    saved_epochs.txt     how many epochs the checkpoint has
    training.json        whether steps are compiled, and in which precision, as decided before the first one
    training_warnings.txt   training: why it is slower than it could be, one per line; until the end
    trained_on.txt       devices that it was trained on, one per line
    ranges/              ranges of images that are evaluated so far (harness.storage.ranges); until the end
    weights.safetensors  the final network, parametrisations folded in
    verdicts.parquet     one row for each test image
    counterexamples.safetensors   adversarial images by index (harness.attacks.counterexamples)
    certificates.safetensors   of images that branch and bound or a search for slopes certified, if any
    result.json          written last: a folder without it is unfinished
    log.txt              log messages with times
    failure.json         why the trial failed
    chosen.json          how a search chose the trial's settings, if it did
    mlflow.json          what MLflow has of the trial: written by the driver (harness.tracking)
    source.checkpoint    the file that the weights of a network trained elsewhere come from

Every file but epochs.jsonl is written atomically. `train_and_certify` of harness.training writes result.json and
failure.json; the driver writes failure.json if the worker died.
"""

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field

from harness.common.errors import InputError, require
from harness.common.masking import mask_secrets
from harness.common.models import LENIENT, Model, validate
from harness.config.trial import RECIPE_VERSION, Trial
from harness.pretrained.network_file import NetworkFile, digest_of, read_file
from harness.storage.files import parse_json, read_bytes, write_bytes, write_json
from harness.storage.ranges import RANGES

T = TypeVar("T")

TRIALS = "trials"
"""A folder of the sweep's directory, with a folder for each trial."""
TRIAL, EPOCHS, WEIGHTS = "trial.json", "epochs.jsonl", "weights.safetensors"
CHECKPOINT, SAVED_EPOCHS = "checkpoint.pt", "saved_epochs.txt"
VERDICTS, RESULT, FAILURE = "verdicts.parquet", "result.json", "failure.json"
LOG = "log.txt"
CHOSEN = "chosen.json"
TRAINING, TRAINING_WARNINGS = "training.json", "training_warnings.txt"
TRAINED_ON = "trained_on.txt"
NETWORK_FILE = "source.checkpoint"  # with the weights of a network trained elsewhere
_WRITTEN = (LOG, EPOCHS, CHECKPOINT, WEIGHTS, RESULT, FAILURE)
REPORT, FIGURES = "report.html", "figures"
"""In the sweep's directory: its page, and the folder of the page's figures for LaTeX."""
COUNTEREXAMPLES = "counterexamples.safetensors"
CERTIFICATES = "certificates.safetensors"


@dataclass(frozen=True)
class TrialRecord:
    """What trial.json holds: a config and the fingerprint of its data."""

    __pydantic_config__: ClassVar = LENIENT

    key: str
    recipe_version: int
    fingerprint: str
    config: Trial


@dataclass(frozen=True)
class TrialResult:
    """What result.json holds.

    metrics: final numbers by the names in harness.common.names, None if not finite.
    environment: device, versions, code version.
    data: the description of the data set.
    warnings: for the table.
    """

    __pydantic_config__: ClassVar = LENIENT

    key: str
    metrics: dict[str, float | None]
    environment: dict[str, str]
    data: dict[str, Any]
    warnings: list[str]


class Failure(Model):
    """What failure.json holds: why a trial failed.

    last_finite: the last finite values if training diverged. repeats: True if the trial would fail again.
    """

    model_config = LENIENT

    error: str
    last_finite: dict[str, Any] = Field(default={})
    repeats: bool = False


class Chosen(Model):
    """What chosen.json holds: how a search chose a trial's settings, as text, and the search; searches write more."""

    model_config = ConfigDict(extra="allow")

    text: str
    search: str


def make_trial(config: Trial, fingerprint: str) -> TrialRecord:
    """Return the trial of a config on the data with this fingerprint, under today's recipe."""
    return TrialRecord(config.key(fingerprint), RECIPE_VERSION, fingerprint, config)


def trial_json(trial: TrialRecord) -> dict[str, Any]:
    """Return the content of trial.json."""
    return {**asdict(trial), "config": trial.config.model_dump(mode="json")}


def read_trial(path: Path) -> TrialRecord:
    """Read trial.json. Raises DamagedFileError if it is missing or damaged, or its key is another trial's."""
    return parse_json(path, parse_trial)


def parse_trial(content: Any, has_own_key: bool = True) -> TrialRecord:
    """Return the trial that trial.json holds.

    has_own_key: False for certification.json, whose key is that of the trial with its own settings. Raises SettingError
    if the file was changed by hand, if its key is no name, or if an older recipe had other settings.
    """
    try:
        trial: TrialRecord = validate(TrialRecord, content, is_json=True)
    except InputError:
        if isinstance(content, dict):
            version, today = content.get("recipe_version"), f"{RECIPE_VERSION}, today's; run the trial again"
            require("recipe_version", version, version == RECIPE_VERSION, today)
        raise
    _require_name(trial.key)
    expected = (
        trial.config.key(trial.fingerprint) if has_own_key and trial.recipe_version == RECIPE_VERSION else trial.key
    )
    require("key", trial.key, trial.key == expected, f"{expected}, the key of its config; the file was changed by hand")
    return trial


def trial_dir(sweep_dir: Path, key: str) -> Path:
    """Return the folder of the trial `key` in a sweep's directory. Raises SettingError if the key is no file name."""
    _require_name(key)
    return sweep_dir / TRIALS / key


def sweep_dir_of(path: Path) -> Path:
    """Return the directory of the sweep that a trial's folder lies in, or `path` if it is not below `trials`."""
    path = path.absolute()
    return path.parents[1] if path.parent.name == TRIALS else path


def _require_name(key: str, what: str = "key") -> None:
    """Raise SettingError for a key, or another name, that would lead out of the sweep's directory."""
    require(what, key, re.fullmatch(r"[A-Za-z0-9_-]{1,100}", key) is not None, "letters, digits, '_' and '-'")


def take_over(directory: Path, trial: TrialRecord) -> None:
    """Make `directory` the trial's folder, with today's sources.

    Raises SettingError if it is another trial's, or the data has changed.
    """
    path = directory / TRIAL
    before = read_trial(path) if path.exists() else None
    if before is not None and before.config == trial.config:
        made_for, found = before.fingerprint, trial.fingerprint
        require("data", found, found == made_for, f"the data this trial was made for, {made_for}")
    key = before.key if before else trial.key
    allowed = f"an empty folder or that of trial {trial.key}; it holds {key}"
    require("directory", str(directory), key == trial.key, allowed)
    if before is None or trial_json(before) != trial_json(trial):
        write_json(path, trial_json(trial))


def copy_network_file(network_file: NetworkFile, path: Path, to: Path) -> None:
    """Copy the file of a network trained elsewhere. Raises InputError if there is none, or another one."""
    if not (to.exists() and digest_of(read_bytes(to)) == network_file.sha256):
        write_bytes(to, read_file(path, network_file))


def read_result(directory: Path) -> TrialResult | None:
    """Read a trial's result, None if the trial is unfinished. Raises DamagedFileError."""
    return _parse_if_there(directory / RESULT, parse_result)


def parse_result(content: Any) -> TrialResult:
    """Return the result that result.json holds."""
    result: TrialResult = validate(TrialResult, content, is_json=True)
    return result


def write_result(directory: Path, result: TrialResult) -> None:
    """Write result.json, the last file of a trial."""
    write_json(directory / RESULT, asdict(result))


def write_failure(
    directory: Path, error: str, last_finite: dict[str, Any] | None = None, repeats: bool = False
) -> None:
    """Write why the trial failed, as `Failure` has it."""
    failure = Failure(error=mask_secrets(error), last_finite=last_finite or {}, repeats=repeats)
    write_json(directory / FAILURE, failure.model_dump())


def read_failure(directory: Path) -> Failure | None:
    """Read why the trial failed, None if it did not. Raises DamagedFileError."""
    return _parse_if_there(directory / FAILURE, partial(validate, Failure))


def write_chosen(directory: Path, content: dict[str, Any]) -> None:
    """Mark the trial as chosen by a search; `text` of the content describes how."""
    write_json(directory / CHOSEN, content)


def read_chosen(directory: Path) -> Chosen | None:
    """Read what `write_chosen` wrote, None if no search chose the trial. Raises DamagedFileError."""
    return _parse_if_there(directory / CHOSEN, parse_chosen)


def parse_chosen(content: Any) -> Chosen:
    """Return what chosen.json holds."""
    chosen: Chosen = validate(Chosen, content)
    _require_name(chosen.search, "search")
    return chosen


def _parse_if_there(path: Path, parse: Callable[[Any], T]) -> T | None:
    return parse_json(path, parse) if os.path.lexists(path) else None  # a broken link is damage


def last_write(trial_dir: Path) -> float | None:
    """Return when the trial last wrote a file, in seconds since 1970; None for a trial that is not begun."""
    paths = [*(trial_dir / name for name in _WRITTEN), *trial_dir.glob(f"{RANGES}/*")]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=None)


def trial_folders(sweep_dir: Path) -> list[Path]:
    """Return all trial folders of a sweep, by name; a folder without trial.json is not a trial."""
    return sorted(path.parent for path in sweep_dir.glob(f"trials/*/{TRIAL}"))
