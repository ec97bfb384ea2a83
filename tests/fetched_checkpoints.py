"""Checkpoints that `sweeps/fetch_checkpoints.py` puts beside the project, and the sweeps that need them."""

from pathlib import Path

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"


def why_not_loadable(sweep):
    """Return why a sweep of the project cannot be loaded here, or "" if it can. sweep: its name."""
    if not sweep.startswith("published-") or CHECKPOINTS.is_dir():
        return ""
    return f"there is no {CHECKPOINTS}: sweeps/fetch_checkpoints.py fetches it"
