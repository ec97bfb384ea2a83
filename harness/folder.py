"""A trial's folder, results/<sweep>/trials/<key>/, the only truth about a trial.

    trial.json           key, recipe version, data fingerprint, config: also what `--export` writes
    epochs.jsonl         one line an epoch, from epoch 0: the untrained network
    checkpoint.pt        network, optimiser, epoch: where a retry goes on
    weights.safetensors  the final network, parametrisations folded in
    verdicts.parquet     one row a test example
    result.json          written last: a folder without it is unfinished
    failure.json         why the trial stopped, where it failed

Every file is written under a temporary name and renamed, so that none is ever half there.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.names import EPOCH
from harness.settings import RECIPE_VERSION, SettingError, TrialConfig, from_dict, to_dict, trial_key

TRIAL, EPOCHS, CHECKPOINT, WEIGHTS = "trial.json", "epochs.jsonl", "checkpoint.pt", "weights.safetensors"
VERDICTS, RESULT, FAILURE = "verdicts.parquet", "result.json", "failure.json"


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a temporary path beside `path`, flush it to disk, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o644)  # safetensors would leave it to its owner alone
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinities are an error, since JSON has none."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


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

    metrics: final numbers by the names in harness.names, None where not finite.
    environment: device, versions, code version. warnings: for the table. data: what the data set says of itself.
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


class DamagedFileError(ValueError):
    """A file of a trial's folder that is not what it should be; the message names it."""


def _parsed(path: Path, parse: Callable[[Any], Any]) -> Any:
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def read_trial(path: Path) -> Trial:
    """Read trial.json. Raises DamagedFileError where it is missing or not such a file."""

    def parse(content: dict[str, Any]) -> Trial:
        return Trial(content["key"], content["recipe_version"], content["fingerprint"], from_dict(content["config"]))

    return _parsed(Path(path), parse)


def make_directory(directory: Path) -> None:
    """Make a directory and its parents. Raises SettingError where that cannot be done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(str(directory), error.strerror, "a directory that can be made") from None


def place(sweep_directory: Path, key: str) -> Path:
    """The folder of the trial `key` in a sweep's directory."""
    return Path(sweep_directory) / "trials" / key


def claim(directory: Path, trial: Trial) -> None:
    """Make `directory` the trial's folder. Raises SettingError where it is another trial's."""
    path = Path(directory) / TRIAL
    if not path.exists():
        write_json(path, trial_json(trial))
    elif (held := read_trial(path).key) != trial.key:
        raise SettingError(
            "directory", str(directory), f"an empty folder or that of trial {trial.key}; it holds {held}"
        )


def read_result(folder: Path) -> TrialResult | None:
    """The result in a trial's folder, None where the trial is unfinished. Raises DamagedFileError."""
    path = Path(folder) / RESULT
    return _parsed(path, lambda content: TrialResult(**content)) if path.exists() else None


def write_result(folder: Path, result: TrialResult) -> None:
    """Finish the trial: the last file to be written."""
    write_json(Path(folder) / RESULT, asdict(result))


def write_failure(folder: Path, error: BaseException) -> None:
    """Say why the trial stopped, with the last finite values where training diverged."""
    why = {"error": f"{type(error).__name__}: {error}", "last_finite": getattr(error, "last_finite", {})}
    write_json(Path(folder) / FAILURE, why)


def is_stale(folder: Path) -> bool:
    """Whether the trial is of another recipe version, readable by today's code or not."""
    path = Path(folder) / TRIAL
    return _parsed(path, lambda content: content["recipe_version"] != RECIPE_VERSION)


def read_failure(folder: Path) -> dict[str, Any] | None:
    """Why the trial failed, None where it did not: `error`, and `last_finite` values where training diverged."""
    path = Path(folder) / FAILURE
    return _parsed(path, dict) if path.exists() else None


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The trial's epoch rows in order. Raises DamagedFileError."""
    path = Path(folder) / EPOCHS
    try:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    except ValueError as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from error


def write_epoch(folder: Path, row: dict[str, Any]) -> None:
    """Add one epoch's row, dropping rows of this epoch or later that an interrupted run left."""
    rows = [old for old in read_epochs(folder) if old[EPOCH] < row[EPOCH]] + [row]
    text = "".join(json.dumps(r, allow_nan=False) + "\n" for r in rows)
    write_atomically(Path(folder) / EPOCHS, lambda temporary: temporary.write_text(text))


def trial_folders(sweep_directory: Path) -> list[Path]:
    """All trial folders of a sweep, by name; those without a trial.json are not trials."""
    return sorted(path.parent for path in Path(sweep_directory).glob(f"trials/*/{TRIAL}"))
