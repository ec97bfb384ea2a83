"""The instances of a competition's CSV file: solved side by side, stored one file each, and their table."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from os.path import exists, isfile  # also of names that are too long, unlike those of Path
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.common.errors import InputError, require
from harness.common.terminal import one_line, print_table, printable, with_plural
from harness.pretrained.network_file import digest_of
from harness.storage.files import (
    LARGEST_TEXT,
    DamagedFileError,
    read_bytes,
    refuse_links,
    remove_unfinished,
    write_bytes,
    write_json,
    write_text,
)
from harness.storage.folder import NETWORKS
from harness.storage.instances import (
    ERROR,
    INSTANCES,
    RESULTS,
    Record,
    certificate_path,
    find_records,
    read_record,
    results_text,
)
from harness.storage.lock import lock_directory
from harness.tune.items import Item, Listener, Queue
from harness.tune.machines import share_machine
from harness.tune.progress import Bars
from harness.tune.run_items import run_items

_NETWORK = r"""\s*\(\s*(?:'\w+'|"\w+")\s*,\s*(?:'([^']*)'|"([^"]*)")\s*\)\s*"""
_NETWORKS = re.compile(rf"\s*\[(?:{_NETWORK},)*(?:{_NETWORK})?\]\s*")


@dataclass(frozen=True)
class Instance:
    """A row of the file. onnx, vnnlib: absolute paths. timeout: seconds.

    problem: why the row cannot be solved, or ''. Then the paths are as written in the file, and timeout is 0.
    """

    onnx: str
    vnnlib: str
    timeout: float
    problem: str = ""


def read_instances(path: Path, seconds: float | None = None) -> list[Instance]:
    """Return the instances of a CSV file without a header: onnx, vnnlib and timeout, paths relative to the file.

    A file that is not there may lie there packed, under its name and `.gz`. A network may be a list of one pair of name
    and path, as in VNN-COMP 2026.

    seconds: replaces all timeouts. Raises InputError if no row can be solved, with the problem of the first.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_bytes(path, LARGEST_TEXT).decode("utf-8-sig"), newline=None)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    instances = [
        _instance(row, f"{path}, line {number}", path.parent, seconds) for number, row in enumerate(rows, 1) if row
    ]
    if not instances:
        raise InputError(f"{path} holds no instances: found no rows, allowed: onnx,vnnlib,timeout")
    if all(instance.problem for instance in instances):
        raise InputError(instances[0].problem)
    return instances


def _instance(row: list[str], where: str, folder: Path, seconds: float | None) -> Instance:
    network, property_, timeout, *_ = (*map(str.strip, row), "", "")
    try:
        require(where, row, len(row) == 3, "onnx,vnnlib,timeout")
        limit, names = _seconds_in(timeout, where), (_network_in(network, where), property_)
        onnx, vnnlib = (_find((folder / name).absolute()) for name in names)
        for name, file in zip(names, (onnx, vnnlib), strict=True):
            require(where, name, isfile(file), "a file, relative to the CSV file")
    except InputError as error:
        return Instance(network, property_, 0.0, str(error))
    return Instance(str(onnx), str(vnnlib), limit if seconds is None else seconds)


def _network_in(text: str, where: str) -> str:
    """Return the path of a network, which may be the only one of a list of pairs. Raises InputError for several."""
    if not text.startswith("["):
        return text
    require(where, text, _NETWORKS.fullmatch(text) is not None, "a path, or [('name', 'path')]")
    paths = [single or double for single, double in re.findall(_NETWORK, text)]
    require(where, f"{len(paths)} networks", len(paths) == 1, "one: properties of several are not supported")
    return paths[0]


def _seconds_in(text: str, where: str) -> float:
    try:
        timeout = float(text)
    except ValueError:
        timeout = 0.0
    require(f"{where}, timeout", text, 0 < timeout < float("inf"), "seconds above 0")
    return timeout


def _find(path: Path) -> Path:
    """Return the path, or that of the file packed, which competitions store under the name of the other."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if isfile(packed) and not exists(path) else path


def solve_instances(instances: Sequence[Instance], directory: Path, workers: int | None, console: Console) -> bool:
    """Solve the instances that have no result in the directory yet; returns whether all have one that is no error.

    The results of a file whose bytes changed, or of another timeout, and errors are replaced. Raises InputError if the
    directory holds a sweep, results of other instances, or a link that leads out of it.
    """
    directory = directory.absolute()
    refuse_links(directory)
    if (directory / NETWORKS).exists():
        raise InputError(f"{directory} holds {NETWORKS}/ of a sweep: choose another --results-dir")
    with lock_directory(directory):
        paths = [directory / INSTANCES / f"{number:05}.json" for number in range(1, len(instances) + 1)]
        _refuse_other_results(directory, paths, instances)
        (directory / INSTANCES).mkdir(exist_ok=True)
        remove_unfinished(directory / INSTANCES)
        digest = cache(_digest)  # many instances share a network
        queries, problems = dict[Path, Record](), dict[Path, str]()
        for path, each in zip(paths, instances, strict=True):
            files = {"onnx": each.onnx, "vnnlib": each.vnnlib}
            digests = {f"{kind}_sha256": digest(kind, file) for kind, file in files.items()}
            queries[path] = {**files, "timeout": each.timeout, **digests}
            if each.problem:
                problems[path] = each.problem
        records = {path: _read(path, query) for path, query in queries.items()}
        todo = [path for path, record in records.items() if record is None]
        console.print(f"{with_plural(len(instances), 'instance')}, {len(instances) - len(todo)} solved already")
        _solve_missing(todo, problems, queries, records, directory, workers, console)
        return _report([record for record in records.values() if record], len(queries), directory, console)


def _refuse_other_results(directory: Path, paths: Collection[Path], instances: Sequence[Instance]) -> None:
    """Raise InputError if a record in the directory is of none of the instances, whose records lie at `paths`."""
    pairs = {(each.onnx, each.vnnlib) for each in instances}
    others = [path for path in find_records(directory) if path not in paths or not _may_be_replaced(path, pairs)]
    if others:
        advice = "choose another --results-dir, or delete them"
        raise InputError(f"found {len(others)} results of other instances, such as {others[0]}: {advice}")


def _may_be_replaced(path: Path, pairs: Collection[tuple[str, str]]) -> bool:
    """Return whether a record is damaged, an error, or of one of the pairs of network and property."""
    try:
        record = read_record(path)
    except DamagedFileError:
        return True
    return record["result"] == ERROR or (str(record["onnx"]), str(record["vnnlib"])) in pairs


def _solve_missing(
    todo: list[Path], problems: dict[Path, str], queries: dict[Path, Record], records: dict[Path, Record | None],
    directory: Path, workers: int | None, console: Console,
) -> None:  # fmt: skip
    """Solve instances and put their records into `records`; results.csv is written again after each.

    problems: of those that are errors as they are.
    """

    def write(path: Path, error: str | None) -> None:
        if error is not None:
            write_json(path, queries[path] | {"result": ERROR, "seconds": 0.0, "branches": 0, "detail": error})
        record = records[path] = read_record(path)
        known = [record for record in records.values() if record]
        write_text(directory / RESULTS, results_text(known))
        counts = _counts(known)
        bars.move(
            "all", f"{counts.total()} of {len(queries)} instances", counts.total() / len(queries), _in_words(counts)
        )
        if not console.is_terminal:
            name = f"{_name(record['onnx'])} {_name(record['vnnlib'])}"
            line = f"{name}: {record['result']}, {record['seconds']:.1f} s"
            line += f": {record['detail']}" if record["result"] == ERROR else ""
            console.print(printable(line))

    with Bars(console) as bars:
        for path in todo:
            if path in problems:
                write(path, problems[path])
        items = [Item(path, path.stem, queries[path]) for path in todo if path not in problems]
        if items:
            run_items(Queue(items), _solve_instance, _Ends(write), share_machine(len(items), workers))


class _Ends(Listener):
    """Calls a function at the end of each instance, with its path and the error that ended it."""

    def __init__(self, write: Callable[[Path, str | None], None]):
        self.write = write

    def on_end(self, item: Item, error: str | None, result: dict[str, Any]) -> None:
        """Write how an instance ended."""
        self.write(item.directory, error)


def _solve_instance(item: Item, report: object) -> Record:
    """Solve the instance whose record is this item, write the record and return what came of it."""
    from safetensors.torch import save

    from harness.vnnlib.solve import Result, solve_files

    path, query = item.directory, item.settings
    certificate = certificate_path(path)
    certificate.unlink(missing_ok=True)
    try:
        result = solve_files(Path(query["onnx"]), Path(query["vnnlib"]), query["timeout"], True)
    except InputError as error:
        result = Result(ERROR, detail=str(error))
    content = save(result.certificate) if result.certificate else b""
    if content:
        write_bytes(certificate, content)
    outcome = {
        "result": result.status,
        "seconds": result.seconds,
        "branches": result.branches,
        "detail": result.detail,
        "counterexample": result.counterexample_text,
        "certificate_sha256": digest_of(content) if content else "",
    }
    write_json(path, query | outcome)
    return {"result": result.status, "seconds": result.seconds}


def _digest(kind: str, path: str) -> str:
    """Return the SHA-256 of all that defines a network or a property; "" if it cannot be read, as its result says."""
    from harness.vnnlib.files import READERS  # late: torch takes seconds

    try:
        return digest_of(READERS[kind](Path(path)))
    except InputError:
        return ""


def _read(path: Path, query: Record) -> Record | None:
    """Return the record of a query, or None if there is none, or it is an error's or another query's."""
    try:
        record = read_record(path)
    except DamagedFileError:
        return None
    is_same = all(record.get(name) == value for name, value in query.items())
    return record if is_same and record["result"] != ERROR else None


def _report(records: Sequence[Record], total: int, directory: Path, console: Console) -> bool:
    """Write results.csv, print the table and a summary; returns whether all instances have a result and no error."""
    write_text(directory / RESULTS, results_text(records))
    rows = [
        (_name(r["onnx"]), _name(r["vnnlib"]), r["result"], f"{r['seconds']:.1f}", str(r["branches"]), r["detail"])
        for r in records
    ]
    titles = "network", "property", "result", "seconds", "branches", "detail"
    print_table(console, titles, (list(map(one_line, row)) for row in rows))
    counts = _counts(records)
    console.print(f"{_in_words(counts)} -> {directory / RESULTS}")
    return len(records) == total and not counts[ERROR]


def _counts(records: Sequence[Record]) -> Counter[str]:
    return Counter(record["result"] for record in records)


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))


def _name(path: str) -> str:
    return Path(path).name
