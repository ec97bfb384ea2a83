"""Checkpoints that `sweeps/fetch_checkpoints.py` puts beside the project, and the sweeps that need them."""

import re
from pathlib import Path

SWEEPS = Path(__file__).resolve().parents[1] / "sweeps"


def why_not_loadable(sweep):
    """Return why a sweep of the project cannot be loaded here, or "" if it can. sweep: its name."""
    path = SWEEPS / f"{sweep}.yaml"
    files = re.findall(r"\.\./\.\./checkpoints/[^\s,\]]+", path.read_text()) if path.exists() else []
    missing = [file for file in files if not (SWEEPS / file).is_file()]
    return f"there is no {missing[0]}: sweeps/fetch_checkpoints.py fetches it" if missing else ""
