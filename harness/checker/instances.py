"""Prove the results in a directory of `harness.verify` again, from the files of networks and properties."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load

from cerdeq import OnnxError
from cerdeq.onnx import LoadedFile
from harness.checker.proofs.certificates import Tensors
from harness.checker.properties import NotConfirmedError, confirm_sat, confirm_unsat, refuse_other_than_order
from harness.common.errors import InputError, error_line
from harness.storage.files import parse_file, read_bytes
from harness.storage.instances import (
    ERROR,
    INSTANCES,
    RESULTS,
    SAT,
    TIMEOUT,
    UNKNOWN,
    UNSAT,
    Record,
    certificate_path,
    find_records,
    read_record,
    results_text,
)
from harness.vnnlib.properties import Property

COUNTEREXAMPLE = "counterexample"
_CLAIMS, _OTHERS = {SAT, UNSAT}, {UNKNOWN, TIMEOUT, ERROR}


Load = Callable[[Record], tuple[Property, LoadedFile]]  # reads the files that a record names


@dataclass(frozen=True)
class CheckedResult:
    """The result of an instance, checked.

    name: of its network and property. status: that is recorded. proved_by: what proved it, "" if it is not confirmed.
    problem: why it is not confirmed. seconds: of the check.
    """

    name: str
    status: str
    proved_by: str = ""
    problem: str = ""
    seconds: float = 0.0

    @property
    def is_claim(self) -> bool:
        """True if the result claims something. What cannot be read may have been such a result."""
        return self.status in _CLAIMS or bool(self.problem)


def name_of(path: Path) -> str:
    """Return the names of a record's network and property; the record's own if it cannot be read."""
    try:
        record = read_record(path)
        return f"{Path(record['onnx']).name} {Path(record['vnnlib']).name}"
    except InputError:
        return path.name


def check_records(records: list[Path], load_files: Load) -> Iterator[CheckedResult]:
    """Check each result; whatever its files hold, the others are checked after it."""
    for path in records:
        name, status, began = name_of(path), "unreadable", time.monotonic()
        try:
            record = read_record(path)
            status = str(record["result"])
            if record["result"] not in (*_CLAIMS, *_OTHERS):
                raise NotConfirmedError("this is no result")
            proved_by = _confirm(path, record, load_files) if status in _CLAIMS else ""
            yield CheckedResult(name, status, proved_by, seconds=time.monotonic() - began)
        except Exception as error:  # damaged files may raise anything
            is_message = isinstance(error, InputError | NotConfirmedError | OnnxError)
            problem = " ".join(str(error).split()) if is_message else error_line(error)
            yield CheckedResult(name, status, problem=problem, seconds=time.monotonic() - began)


def check_table(directory: Path) -> list[str]:
    """Check that results.csv follows from the records."""
    try:
        expected = results_text([read_record(path) for path in find_records(directory)])
        same = read_bytes(directory / RESULTS).decode() == expected
    except Exception as error:  # as `check_records`
        return [f"{RESULTS} is not checked: {error_line(error)}"]
    return [] if same else [f"{RESULTS} does not follow from {INSTANCES}/"]


def _confirm(path: Path, record: Record, load_files: Load) -> str:
    """Prove a record's claim; return what proved it. Raises as `confirm_unsat`, and InputError or OnnxError."""
    property_, (model, run, run_file) = load_files(record)
    if run_file is not run:
        refuse_other_than_order(property_)
    if record["result"] == SAT:
        confirm_sat(property_, model, run, record["counterexample"], run_file)
        return COUNTEREXAMPLE
    return confirm_unsat(property_, model, run, _certificate(path, record))


def _certificate(path: Path, record: Record) -> Tensors:
    """Return the tensors of a record's certificate, if it has one. Raises NotConfirmedError for a missing file."""
    certificate = certificate_path(path)
    if not record.get("certificate_sha256"):
        return {}
    if not certificate.is_file():
        raise NotConfirmedError(f"{certificate.name} is missing")
    return parse_file(certificate, load)
