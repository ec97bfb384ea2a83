"""The results directory of `harness.verify`: the record of each instance, its certificate, and their table."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.common.models import LENIENT, Model, validate
from harness.storage.files import parse_json

SAT, UNSAT, UNKNOWN, TIMEOUT, ERROR = "sat", "unsat", "unknown", "timeout", "error"
RESULTS, INSTANCES = "results.csv", "instances"
_COLUMNS = ("onnx", "vnnlib", "timeout", "result", "seconds", "branches", "detail")

Record = dict[str, Any]


def find_records(directory: Path) -> list[Path]:
    """Return the records of a results directory, one for each instance; none in a directory of another command."""
    return sorted(path for path in (directory / INSTANCES).glob("*.json") if path.is_file())


def certificate_path(record_path: Path) -> Path:
    """Return where the certificate of a record lies."""
    return record_path.with_suffix(".safetensors")


def read_record(path: Path) -> Record:
    """Return an instance's record. Raises DamagedFileError."""

    def parse(content: Any) -> Record:
        validate(_Record, content)
        return {name: content[name] for name in content.keys() | _COLUMNS}

    return parse_json(path, parse)


class _Record(Model):
    """What a record holds, as far as results.csv has it."""

    model_config = LENIENT

    onnx: str
    vnnlib: str
    timeout: float
    result: str
    seconds: float
    branches: int
    detail: str


def results_text(records: Sequence[Record]) -> str:
    """Return the content of results.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(record | {"seconds": f"{record['seconds']:.2f}"} for record in records)
    return text.getvalue()
