"""What the JSON files of networks and evaluations hold (`folder.py` says which files there are), and their checks."""

import re
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from harness.common.errors import InputError, require
from harness.common.models import LENIENT, Model, validate
from harness.config.training import RECIPE_VERSION, Training
from harness.settings import EVALUATION_VERSION, Evaluation


@dataclass(frozen=True)
class TrainingRecord:
    """What training.json holds: a config and the fingerprint of its data."""

    __pydantic_config__: ClassVar = LENIENT

    key: str
    recipe_version: int
    fingerprint: str
    config: Training


@dataclass(frozen=True)
class EvaluationRecord:
    """What evaluation.json holds."""

    __pydantic_config__: ClassVar = LENIENT

    key: str
    version: int
    config: Evaluation


@dataclass(frozen=True)
class Result:
    """What trained.json and result.json hold.

    key: of the network; in result.json "<key of the network>/<key of the evaluation>".
    metrics: final numbers by the names in harness.common.names, None if not finite; result.json has those of training.
    environment: device, versions, code version.
    data: the description of the data set.
    warnings: for the table.
    taken_over: in result.json, how many answers are those of which other evaluation, by its key.
    weights: the SHA-256 of the network's file.
    verdicts: in result.json, the SHA-256 of verdicts.parquet.
    """

    __pydantic_config__: ClassVar = LENIENT

    key: str
    metrics: dict[str, float | None]
    environment: dict[str, str]
    data: dict[str, Any]
    warnings: list[str]
    taken_over: dict[str, int] = field(default_factory=dict)
    weights: str = ""
    verdicts: str = ""


class Failure(Model):
    """What failure.json holds: why training or an evaluation failed.

    last_finite: the last finite values if training diverged. repeats: True if it would fail again.
    """

    model_config = LENIENT

    error: str
    last_finite: dict[str, Any] = Field(default={})
    repeats: bool = False


class Chosen(Model):
    """How a search chose a network's settings, as text, and the search; searches write more.

    front: of a search for two errors, the searched row and the search. network: that row's. Empty of other searches.
    """

    model_config = ConfigDict(extra="allow")

    text: str
    search: str
    front: str = ""
    network: str = ""


def make_record(config: Training, fingerprint: str) -> TrainingRecord:
    """Return the record of a training on the data with this fingerprint, under today's recipe."""
    return TrainingRecord(config.key(fingerprint), RECIPE_VERSION, fingerprint, config)


def record_json(record: TrainingRecord | EvaluationRecord) -> dict[str, Any]:
    """Return the content of training.json or evaluation.json."""
    return {**asdict(record), "config": record.config.model_dump(mode="json")}


def parse_training(content: Any) -> TrainingRecord:
    """Return the record that training.json holds.

    Raises SettingError if the file was changed by hand, if its key is no name, or if an older recipe had other
    settings.
    """
    record: TrainingRecord = _parse_record(TrainingRecord, content, "recipe_version", RECIPE_VERSION)
    expected = record.config.key(record.fingerprint) if record.recipe_version == RECIPE_VERSION else record.key
    return _with_own_key(record, expected)


def parse_evaluation(content: Any) -> EvaluationRecord:
    """Return the record that evaluation.json holds. Raises SettingError as `parse_training` does."""
    record: EvaluationRecord = _parse_record(EvaluationRecord, content, "version", EVALUATION_VERSION)
    return _with_own_key(record, record.config.key if record.version == EVALUATION_VERSION else record.key)


def _parse_record(kind: Any, content: Any, version_name: str, version: int) -> Any:
    try:
        return validate(kind, content, is_json=True)
    except InputError:
        if isinstance(content, dict):
            found = content.get(version_name)
            require(version_name, found, found == version, f"{version}, today's; run the sweep again")
        raise


def _with_own_key(record: Any, expected: str) -> Any:
    require_name(record.key)
    allowed = f"{expected}, the key of its config; the file was changed by hand"
    require("key", record.key, record.key == expected, allowed)
    return record


def require_name(key: str, what: str = "key") -> None:
    """Raise SettingError for a key, or another name, that would lead out of the sweep's directory."""
    require(what, key, re.fullmatch(r"[A-Za-z0-9_-]{1,100}", key) is not None, "letters, digits, '_' and '-'")


def parse_study(content: Any) -> dict[str, str]:
    """Return what study.json holds."""
    study: dict[str, str] = validate(dict[str, str], content)
    return study


def parse_result(content: Any) -> Result:
    """Return the result that trained.json or result.json holds."""
    result: Result = validate(Result, content, is_json=True)
    return result


def parse_choices(content: Any) -> list[Chosen]:
    """Return what chosen.json holds, a choice of each search; older files hold one, not in a list."""
    choices = [validate(Chosen, each) for each in (content if content and isinstance(content, list) else [content])]
    for each in choices:
        require_name(each.search, "search")
    return choices
