"""The files of a sweep's directory that the checker reads. Each check returns a line for each problem."""

from collections.abc import Collection
from pathlib import Path

from harness.common.errors import InputError
from harness.config.training import Training
from harness.pretrained.network_file import digest_of
from harness.storage import folder
from harness.storage.files import read_bytes
from harness.storage.state import EvaluationState, read_state_or_raise


def find_folders(sweep_dir: Path) -> dict[Path, list[Path]]:
    """Return, for each network's folder, the folders of its evaluations; a teacher that nothing evaluates has no row.

    Raises InputError for a directory of an older version.
    """
    folder.refuse_older(sweep_dir)
    network_dirs = [
        path for path in _entries(sweep_dir / folder.NETWORKS) if path.is_dir() and not folder.is_only_teacher(path)
    ]
    return {path: [each for each in _entries(path / folder.EVALUATIONS) if each.is_dir()] for path in network_dirs}


def read_finished(evaluation_dir: Path) -> EvaluationState:
    """Return the state of a finished evaluation.

    Raises InputError where a file is missing or damaged, or the result is another one's.
    """
    state = read_state_or_raise(evaluation_dir)
    files = {folder.TRAINING: state.training, folder.EVALUATION: state.evaluation, folder.RESULT: state.result}
    if missing := [name for name, content in files.items() if content is None]:
        raise InputError(f"{missing[0]}: {state.text}")
    return state


def check_plugins(config: Training, trusted: Collection[str]) -> list[str]:
    """Check that a network needs no code that is not trusted."""
    return [
        f"not checked: {folder.TRAINING} names the plugin {name}; if you trust it, add --plugin {name}"
        for name in config.plugins
        if name not in trusted
    ]


def check_weights(evaluation_dir: Path, expected: str) -> list[str]:
    """Check that the network's weights are stored, and are those of the evaluation. expected: their SHA-256."""
    path = folder.network_of(evaluation_dir) / folder.WEIGHTS
    if not path.is_file():
        return [f"{folder.WEIGHTS} is not stored here"]
    found = digest_of(read_bytes(path))
    if found == expected:
        return []
    return [f"{folder.WEIGHTS}: found SHA-256 {found}, {folder.RESULT} is of {expected or 'an older version'}"]


def digest_files(evaluation_dir: Path) -> str:
    """Return a digest of the files that an evaluation's recheck reads, but for the data."""
    files = (folder.EVALUATION, folder.RESULT, folder.VERDICTS, folder.COUNTEREXAMPLES, folder.CERTIFICATES)
    paths = [folder.network_of(evaluation_dir) / folder.WEIGHTS, *(evaluation_dir / name for name in files)]
    return digest_of("".join(digest_of(read_bytes(path)) if path.exists() else "-" for path in paths).encode())


def _entries(directory: Path) -> list[Path]:
    """Return what a directory holds, by name, without hidden files; nothing where there is none."""
    return sorted(path for path in directory.glob("*") if path.is_dir() or not path.name.startswith("."))
