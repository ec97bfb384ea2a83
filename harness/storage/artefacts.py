"""Weights, proofs and epochs of published results, which only git's history holds: results/ARTEFACTS.md lists them."""

import hashlib
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from harness.common.errors import InputError
from harness.storage.files import read_text, write_text

PAGE = "ARTEFACTS.md"


def archive_of(root: Path, commit: str, *paths: str) -> bytes:
    """Return the tar archive of paths at a commit of the repository at `root`. Raises InputError, as `git` does."""
    return _git(root, "-c", "tar.umask=0002", "archive", "--format=tar", commit, *paths)


def missing_files(directory: Path, commit: str, files: Iterable[Path]) -> list[str]:
    """Return the files below published results that a commit does not hold as they are. Raises InputError."""
    root, path = _locate(directory)
    entries = _git(root, "ls-tree", "-r", "-z", _resolve(root, commit), path).decode().split("\0")[:-1]
    blobs = {name: meta.split()[2] for meta, name in (entry.split("\t") for entry in entries)}
    names = [file.resolve().relative_to(root.resolve()).as_posix() for file in files]
    digests = _git(root, "hash-object", "--no-filters", "--", *names).decode().split() if names else []
    return [name for name, digest in zip(names, digests, strict=True) if blobs.get(name) != digest]


def write_archive_line(directory: Path, commit: str) -> None:
    """Write the line of published results in ARTEFACTS.md, two directories above: commit, size and SHA-256.

    Raises InputError.
    """
    root, path = _locate(directory)
    commit = _resolve(root, commit)
    archive = archive_of(root, commit, path)
    line = f"| {directory.name} | {len(archive) / 1e6:.1f} | `{commit}` | `{hashlib.sha256(archive).hexdigest()}` |"
    page = directory.resolve().parents[1] / PAGE
    lines = read_text(page).splitlines()
    rows = [number for number, text in enumerate(lines) if re.match(r"\| \S+ \| [\d.]+ \| `", text)]
    other_rows = [lines[number] for number in rows if not lines[number].startswith(f"| {directory.name} |")]
    start = rows[0] if rows else lines.index("| --- | --- | --- | --- |") + 1
    lines[start : start + len(rows)] = sorted([*other_rows, line])
    write_text(page, "\n".join(lines) + "\n")


def _locate(directory: Path) -> tuple[Path, str]:
    """Return the root of a directory's repository, and the path from there."""
    root = Path(_git(directory, "rev-parse", "--show-toplevel").decode().strip())
    return root, directory.resolve().relative_to(root.resolve()).as_posix()


def _resolve(root: Path, commit: str) -> str:
    """Return a commit's full hash."""
    return _git(root, "rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}").decode().strip()


def _git(directory: Path, *words: str) -> bytes:
    process = subprocess.run(["git", "-C", directory, *words], capture_output=True)
    if process.returncode:
        raise InputError(f"git {' '.join(words[:6])}: {process.stderr.decode(errors='replace').strip()}")
    return process.stdout
