"""The sweep files of the project, in sweeps/ and beside published studies, and why one cannot be loaded here."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = sorted([*ROOT.glob("sweeps/*.yaml"), *ROOT.glob("results/published/*/*.yaml")], key=lambda path: path.stem)


def why_not_loadable(path):
    """Return why a sweep of the project cannot be loaded here, or "" if it can: files are missing."""
    if path.stem == "own-images":
        return "it needs images of the user"
    files = re.findall(r"(?:\.\./)+checkpoints/[^\s,\]]+", path.read_text())
    missing = [file for file in files if not (path.parent / file).is_file()]
    return f"there is no {missing[0]}: published-mnist/fetch_checkpoints.py fetches it" if missing else ""
