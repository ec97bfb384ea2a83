"""Processes seen through /proc, and waiting for what they do."""

import time
from pathlib import Path


def descendants(pid):
    """All processes below `pid`, from /proc."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(after_name[1]), []).append(int(stat.parent.name))
    below, front = [], [pid]
    while front:
        front = [child for parent in front for child in children.get(parent, [])]
        below += front
    return below


def alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def workers(pid):
    """Ray's processes below `pid` that run a trial."""
    running = []
    for child in descendants(pid):
        try:
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::ImplicitFunc"):
                running.append(child)
        except OSError:
            continue
    return running


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
