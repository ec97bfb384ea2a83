"""The state of a trial or of a certification: decided here alone, from the files of its folder."""

from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.common import names
from harness.common.errors import shorten
from harness.common.terminal import percent
from harness.config.trial import RECIPE_VERSION
from harness.storage import certification, folder, ranges, training_record
from harness.storage.files import DamagedFileError, parse_json
from harness.storage.folder import TrialRecord, TrialResult


class State(StrEnum):
    """OLDER: of another recipe version, finished or not. DAMAGED: a file cannot be read."""

    FINISHED = "finished"
    RUNNING = "running"
    FAILED = "failed"
    UNFINISHED = "unfinished"
    NOT_BEGUN = "not begun"
    OLDER = "older"
    DAMAGED = "cannot be read"


@dataclass(frozen=True)
class TrialState:
    """What a folder says of its trial or certification.

    description: a finished one's certified error, the error of one that failed or cannot be read, how far an unfinished
    one is, of which recipe an older one is.
    trial: None if its file is missing or cannot be read.
    failure: as `folder.read_failure` returns it; None unless it failed.
    chosen: how a search chose the trial, as `folder.read_chosen` returns it.
    written: when training or evaluation last wrote a file, in seconds since 1970; None before they begin, and for
    OLDER and DAMAGED.
    """

    state: State
    description: str = ""
    trial: TrialRecord | None = None
    result: TrialResult | None = None
    failure: dict[str, Any] | None = None
    chosen: dict[str, Any] | None = None
    written: float | None = None

    @property
    def fails_again(self) -> bool:
        """True if a trial has failed, and would end with the same error on any machine."""
        return self.failure is not None and self.failure["repeats"]


def read_state(directory: Path, run_began: float | None = None) -> TrialState:
    """Return the state of the trial or certification in a folder; a damaged file is a state, not an error.

    run_began: when the run that holds the sweep's directory began (`lock.holder`); None if nobody holds it. What is
    unfinished counts as running if it wrote since then, also when its worker has just died.
    """
    is_certification = certification.is_certification(directory)
    path = directory / (certification.CERTIFICATION if is_certification else folder.TRIAL)
    read_record = folder.read_certified_trial if is_certification else folder.read_trial
    state = TrialState(State.NOT_BEGUN)
    try:
        if not path.exists():
            return state
        if (version := parse_json(path, lambda content: content["recipe_version"])) != RECIPE_VERSION:
            with suppress(DamagedFileError):
                state = replace(state, trial=read_record(path))
            return replace(state, state=State.OLDER, description=describe_older(version))
        trial, written = read_record(path), folder.last_write(directory)
        state = replace(state, trial=trial, written=written)
        state = replace(state, chosen=folder.read_chosen(certification.trial_of(directory)))
        if (result := folder.read_result(directory)) is not None:
            if result.key != trial.key:
                raise DamagedFileError(f"{folder.RESULT} belongs to another trial, {result.key}")
            description = f"certified error {percent(result.metrics.get(names.CERTIFIED_ERROR))}"
            return replace(state, state=State.FINISHED, description=description, result=result)
        if (failure := folder.read_failure(directory)) is not None:
            return replace(state, state=State.FAILED, description=str(failure["error"]), failure=failure)
        if written is None:
            return state
        is_running = run_began is not None and written >= run_began
        kind = State.RUNNING if is_running else State.UNFINISHED
        return replace(state, state=kind, description=_describe_progress(directory, trial, is_certification))
    except (OSError, ValueError) as error:
        return replace(state, state=State.DAMAGED, description=str(error).replace(f"{directory}/", ""))


def describe_older(version: object) -> str:
    """Return the description of a trial of another recipe version."""
    return f"older, of recipe version {shorten(version)}, today's is {RECIPE_VERSION}: run it again"


def _describe_progress(directory: Path, trial: TrialRecord, is_certification: bool) -> str:
    """Return how far an unfinished trial or certification is. Raises DamagedFileError."""
    if is_certification:
        return f"{ranges.count_saved_images(directory)} images of {directory.name} are evaluated"
    epochs = trial.config.epochs
    parts = [f"epoch {training_record.last_epoch(directory)} of {epochs}"] if epochs else []
    return ", ".join([*parts, *(["being evaluated"] if (directory / ranges.RANGES).exists() else [])])
