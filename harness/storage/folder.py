"""A trial's folder, results/<sweep>/trials/<key>/, the only truth about a trial.

    trial.json           key, recipe version, data fingerprint, config: also what `--export` writes
    epochs.jsonl         one line an epoch, from epoch 0: the untrained network
    checkpoint.pt        network, optimiser, epoch: where a retry goes on; rows of later epochs are written again
    without.txt          optimisations that training does without since they failed, one a line; until the end
    shards/              verdicts so far, while the network is evaluated: as a certification's
    weights.safetensors  the final network, parametrisations folded in
    verdicts.parquet     one row a test example
    counterexamples.safetensors   adversarial points of attacked examples, by index (harness.attacks.counterexamples)
    certificates.safetensors   of examples that branch and bound or a search for slopes certified, where there are any
    result.json          written last: a folder without it is unfinished
    log.txt              what happened when, in lines
    failure.json         why the trial stopped, where it failed
    chosen.json          how a search chose the trial's settings, where one did

Every file is written whole or not at all; result.json and failure.json are written by `training.trial`, failure.json
also by the driver where the worker itself died.
"""

import errno
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config.trial import RECIPE_VERSION, TrialConfig, from_dict, to_dict, trial_key
from harness.errors import SettingError, require, shown
from harness.masking import masked
from harness.storage.files import DamagedFileError, parsed, write_json, write_text
from harness.storage.names import EPOCH
from harness.storage.parquet import read_table
from harness.typed import checked

TRIAL, EPOCHS, WEIGHTS = "trial.json", "epochs.jsonl", "weights.safetensors"
CHECKPOINT = "checkpoint.pt"
SHARDS, VERDICTS, RESULT, FAILURE = "shards", "verdicts.parquet", "result.json", "failure.json"
LOG = "log.txt"
CHOSEN = "chosen.json"
WITHOUT = "without.txt"
STOP = ".stop"
"""In the sweep's directory: where it is, trials end after the epoch, or the batch of judging, that they are in."""
COUNTEREXAMPLES = "counterexamples.safetensors"
CERTIFICATES = "certificates.safetensors"


@dataclass(frozen=True)
class Trial:
    """A config with the data it is meant for: what trial.json holds."""

    key: str
    recipe_version: int
    fingerprint: str
    config: TrialConfig


@dataclass(frozen=True)
class TrialResult:
    """What result.json holds.

    metrics: final numbers by the names in harness.storage.names, None where not finite.
    environment: device, versions, code version.
    data: what the data set says of itself.
    warnings: for the table.
    """

    key: str
    metrics: dict[str, float | None]
    environment: dict[str, str]
    data: dict[str, Any]
    warnings: list[str]


def make_trial(config: TrialConfig, fingerprint: str) -> Trial:
    """The trial that trains `config` on the data with this fingerprint, under today's recipe."""
    return Trial(trial_key(config, fingerprint), RECIPE_VERSION, fingerprint, config)


def trial_json(trial: Trial) -> dict[str, Any]:
    """JSON-ready content of trial.json."""
    return {**asdict(trial), "config": to_dict(trial.config)}


def read_trial(path: Path) -> Trial:
    """Read trial.json. Raises DamagedFileError where it is missing, not such a file, or its key is another trial's."""

    def parse(content: Any) -> Trial:
        trial = _trial(content)
        made = trial_key(trial.config, trial.fingerprint) if trial.recipe_version == RECIPE_VERSION else trial.key
        require("key", trial.key, trial.key == made, f"{made}, the key of its config; the file was changed by hand")
        return trial

    return parsed(Path(path), parse)


def read_judged(path: Path) -> Trial:
    """Read certification.json: a trial under its own key, whose config is that which it is judged by there.

    Raises DamagedFileError as `read_trial` does.
    """
    return parsed(Path(path), _trial)


def _trial(content: Any) -> Trial:
    known = checked(Trial, content)
    _require_name(known["key"])
    return Trial(known["key"], known["recipe_version"], known["fingerprint"], from_dict(known["config"]))


def place(sweep_directory: Path, key: str) -> Path:
    """The folder of the trial `key` in a sweep's directory. Raises SettingError where the key is no name."""
    _require_name(key)
    return Path(sweep_directory) / "trials" / key


def _require_name(key: str) -> None:
    """Raise SettingError for a key that would lead out of the sweep's directory."""
    require("key", key, re.fullmatch(r"[A-Za-z0-9_-]{1,100}", key) is not None, "letters, digits, '_' and '-'")


def claim(directory: Path, trial: Trial) -> None:
    """Make `directory` the trial's folder. Raises SettingError where it is another trial's."""
    refuse_another(directory, trial)
    path = Path(directory) / TRIAL
    if not path.exists():
        write_json(path, trial_json(trial))


def refuse_another(directory: Path, trial: Trial) -> None:
    """Raise SettingError where `directory` has another trial's trial.json or result.json."""
    path, result = Path(directory) / TRIAL, read_result(directory)
    keys = {read_trial(path).key if path.exists() else trial.key, result.key if result else trial.key}
    if held := ", ".join(keys - {trial.key}):
        allowed = f"an empty folder or that of trial {trial.key}"
        raise SettingError("directory", str(directory), f"{allowed}; it holds {held}")


def require_there(directory: Path) -> None:
    """Raise FileNotFoundError where the trial's folder is gone: it is not made again."""
    if not Path(directory).is_dir():
        raise FileNotFoundError(errno.ENOENT, "the trial's folder is gone", str(directory))


def stop_file(directory: Path) -> Path:
    """What tells the trial in a folder to stop."""
    return Path(directory).absolute().parents[1] / STOP


def read_result(directory: Path) -> TrialResult | None:
    """The result in a trial's folder, None where the trial is unfinished. Raises DamagedFileError."""
    path = Path(directory) / RESULT
    return parsed(path, lambda content: TrialResult(**checked(TrialResult, content))) if path.exists() else None


def write_result(directory: Path, result: TrialResult) -> None:
    """Finish the trial: the last file to be written."""
    write_json(Path(directory) / RESULT, asdict(result))


def write_failure(
    directory: Path, error: str, last_finite: dict[str, Any] | None = None, repeats: bool = False
) -> dict[str, Any]:
    """Say why the trial stopped, with the last finite values where training diverged; returns what was written.

    repeats: whether it would fail so again.
    """
    failure = {"error": masked(error), "last_finite": last_finite or {}, "repeats": repeats}
    write_json(Path(directory) / FAILURE, failure)
    return failure


def is_stale(directory: Path) -> bool:
    """Whether the trial is of another recipe version, readable by today's code or not."""
    path = Path(directory) / TRIAL
    return parsed(path, lambda content: content["recipe_version"] != RECIPE_VERSION)


def read_failure(directory: Path) -> dict[str, Any] | None:
    """Why the trial failed, None where it did not: `error`, `last_finite` values where training diverged, `repeats`."""
    path = Path(directory) / FAILURE

    def parse(content: Any) -> dict[str, Any]:
        return {"error": checked(_Failure, content)["error"], "last_finite": {}, "repeats": False} | content

    return parsed(path, parse) if path.exists() else None


class _Failure:
    """The types of what failure.json holds."""

    error: str
    last_finite: dict[str, Any]
    repeats: bool


def write_chosen(directory: Path, content: dict[str, Any]) -> None:
    """Mark the trial as one that a search chose; `text` says how."""
    write_json(Path(directory) / CHOSEN, content)


def read_chosen(directory: Path) -> dict[str, Any] | None:
    """How a search chose the trial: what `write_chosen` wrote; None where none did. Raises DamagedFileError."""
    path = Path(directory) / CHOSEN
    return parsed(path, dict) if path.exists() else None


def read_verdicts(directory: Path, columns: list[str]) -> pd.DataFrame:
    """These columns of a finished trial's verdicts, one row a test example. Raises DamagedFileError."""
    return read_table(Path(directory) / VERDICTS, columns)


def read_epochs(directory: Path) -> list[dict[str, Any]]:
    """The trial's epoch rows in order. Raises DamagedFileError."""
    path = Path(directory) / EPOCHS
    try:
        return [_epoch(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from error


def _epoch(row: Any) -> dict[str, Any]:
    if type(row) is not dict or type(row.get(EPOCH)) is not int:
        raise ValueError(f"{shown(row)} is no epoch's row")
    return row


def write_epoch(directory: Path, row: dict[str, Any]) -> None:
    """Add one epoch's row, dropping rows of this epoch or later that an interrupted run left.

    Raises FileNotFoundError where the folder was there and is gone.
    """
    if row[EPOCH] > 0:
        require_there(directory)
    rows = [old for old in read_epochs(directory) if old[EPOCH] < row[EPOCH]] + [row]
    write_text(Path(directory) / EPOCHS, "".join(json.dumps(r, allow_nan=False) + "\n" for r in rows))


def read_without(directory: Path) -> list[str]:
    """Return a line for each optimisation that failed and that the trial is trained without."""
    path = Path(directory) / WITHOUT
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def add_without(directory: Path, lines: list[str]) -> None:
    """Add lines to those that `read_without` returns; a line that is there is not added again."""
    before = read_without(directory)
    if added := [line for line in lines if line not in before]:
        write_text(Path(directory) / WITHOUT, "".join(line + "\n" for line in before + added))


def trial_folders(sweep_directory: Path) -> list[Path]:
    """All trial folders of a sweep, by name; those without a trial.json are not trials."""
    return sorted(path.parent for path in Path(sweep_directory).glob(f"trials/*/{TRIAL}"))
