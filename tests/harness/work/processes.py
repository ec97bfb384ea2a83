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


def named(pid, name):
    """Processes below `pid` whose program or title is this one; a worker's title goes on after it."""
    found = []
    for child in descendants(pid):
        try:
            program = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        if program.startswith(name) or program.endswith(f"/{name}"):
            found.append(child)
    return found


def workers(pid):
    """Ray's processes below `pid` that run a trial."""
    return named(pid, "ray::ImplicitFunc")


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
