"""Weights, proofs and epochs of published studies, which only git's history holds: results/ARTEFACTS.md lists them."""

import hashlib
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from harness.common.errors import InputError, require
from harness.storage.files import read_text, write_text

PAGE = "ARTEFACTS.md"


def archive_of(root: Path, commit: str, path: str) -> bytes:
    """Return the tar archive of a path at a commit of the repository at `root`. Raises InputError, as `git` does."""
    return _git(root, "-c", "tar.umask=0002", "archive", "--format=tar", commit, path)


def record(study: Path, commit: str, files: Iterable[Path]) -> None:
    """Write a study's line in ARTEFACTS.md, two directories above it: commit, size and SHA-256 of its archive.

    Raises InputError unless the commit holds each of these files as it is.
    """
    root = Path(_git(study, "rev-parse", "--show-toplevel").decode().strip())
    commit = _git(root, "rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}").decode().strip()
    path = study.resolve().relative_to(root.resolve()).as_posix()
    entries = _git(root, "ls-tree", "-r", "-z", commit, path).decode().split("\0")[:-1]
    blobs = {name: meta.split()[2] for meta, name in (entry.split("\t") for entry in entries)}
    names = [file.resolve().relative_to(root.resolve()).as_posix() for file in files]
    digests = _git(root, "hash-object", "--no-filters", "--", *names).decode().split() if names else []
    lost = [name for name, digest in zip(names, digests, strict=True) if blobs.get(name) != digest]
    require("--tables-of", commit[:12], not lost, f"a commit that holds these files as they are: {', '.join(lost[:5])}")
    archive = archive_of(root, commit, path)
    line = f"| {study.name} | {len(archive) / 1e6:.1f} | `{commit}` | `{hashlib.sha256(archive).hexdigest()}` |"
    page = study.resolve().parents[1] / PAGE
    lines = read_text(page).splitlines()
    rows = [number for number, text in enumerate(lines) if re.match(r"\| \S+ \| [\d.]+ \| `", text)]
    kept = [lines[number] for number in rows if not lines[number].startswith(f"| {study.name} |")]
    start = rows[0] if rows else lines.index("| --- | --- | --- | --- |") + 1
    lines[start : start + len(rows)] = sorted([*kept, line])
    write_text(page, "\n".join(lines) + "\n")


def _git(directory: Path, *words: str) -> bytes:
    done = subprocess.run(["git", "-C", directory, *words], capture_output=True)
    if done.returncode:
        raise InputError(f"git {' '.join(words[:6])}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
