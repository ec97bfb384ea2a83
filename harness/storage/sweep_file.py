"""`sweep.yaml` in a results directory: the whole file as it ran, and what the last command asked for."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.common.errors import InputError
from harness.common.models import validate
from harness.config.file import SweepFile
from harness.config.own_data import KINDS
from harness.config.sweep import Ran
from harness.config.yaml_text import format_yaml, parse_yaml
from harness.storage.files import DamagedFileError, read_text, write_text

SWEEP = "sweep.yaml"
_HEADER = """\
# Written by harness.run: the whole file as it ran. Run it again, also with further --set: nothing is done twice.
"""


def write_sweep_file(file: SweepFile, sweep_dir: Path, networks: Sequence[str]) -> None:
    """Write the file as it ran, unless it is there already. networks: their keys."""

    def move(path: str) -> str:
        expanded = Path(path).expanduser()
        return path if expanded.is_absolute() else os.path.relpath(file.path.parent / expanded, sweep_dir)

    evaluations = [evaluation.key for evaluation in file.sweep.evaluations]
    ran = Ran(profile=file.profile, networks=sorted(networks), evaluations=evaluations)
    content = _with_paths(file.content, move) | {"ran": ran.model_dump()}
    path, text = sweep_dir / SWEEP, _HEADER + format_yaml(content)
    if not (path.exists() and read_text(path) == text):
        write_text(path, text)


def read_ran(sweep_dir: Path) -> Ran | None:
    """Return what the last command in a directory asked for; None without the file, as in published results.

    No plugin of the file is imported. Raises DamagedFileError.
    """
    path = sweep_dir / SWEEP
    if not path.exists():
        return None
    try:
        content = parse_yaml(read_text(path))
        ran: Ran = validate(Ran, content.get("ran") if isinstance(content, dict) else None, "ran")
    except (InputError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from None
    return ran


def _with_paths(content: dict[str, Any], move: Callable[[str], str]) -> dict[str, Any]:
    """Return the content of a sweep file with its paths moved: those of own images and of checkpoints."""
    dataset = content["dataset"]
    if isinstance(dataset, dict):
        paths = {kind: move(dataset[kind]) for kind in KINDS if kind != "torchvision" and dataset.get(kind)}
        content = content | {"dataset": dataset | paths}
    return content | {"trials": _with_checkpoints(content["trials"], move)}


def _with_checkpoints(value: Any, move: Callable[[str], str], is_file: bool = False) -> Any:
    """Return a part of `trials`, whose lists are choices, with the paths of its checkpoints moved."""
    if isinstance(value, list):
        return [_with_checkpoints(each, move, is_file) for each in value]
    if isinstance(value, dict):
        file_key = "file" if is_file else "checkpoint"
        return {key: _with_checkpoints(each, move, key == file_key) for key, each in value.items()}
    return move(value) if is_file and isinstance(value, str) else value
