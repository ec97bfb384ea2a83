"""The section `verifier`: small networks whose exact minimum lies near the edge of robustness, decided by `verify`."""

import argparse
import time
from typing import Any

import torch

from cerdeq import verify
from harness.bench.edge import edge_case

_DEPTHS, _DISTANCES = range(2, 9), (0.1, -0.1, 0.05, -0.05)  # hidden layers; distances in `edge_case`
_SECONDS = 60.0


@torch.no_grad()
def measure_verifier(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each kind of network: how many of them are decided, and in how many seconds.

    wrong: verdicts against the exact minimum; it must be 0. The first options.images networks, the kinds in turn.
    """
    cases = [
        (f"{depth} layers, {'equilibrium' if has_equilibrium else 'explicit'}", depth, has_equilibrium, number)
        for number in range(options.images)
        for depth in _DEPTHS
        for has_equilibrium in (False, True)
    ][: options.images]
    rows = dict[str, dict[str, Any]]()
    for label, depth, has_equilibrium, number in cases:
        case = edge_case(depth, has_equilibrium, number, _DISTANCES[(number + depth) % len(_DISTANCES)])
        start = time.monotonic()
        (status,) = verify(case.model, case.region, torch.ones(1, 1, 1, dtype=torch.float64), _SECONDS).status
        seconds = time.monotonic() - start
        expected = "certified" if case.minimum > 0 else "falsified"
        empty = {"network": label, "networks": 0, "decided": 0, "wrong": 0, "s in sum": 0.0, "s at most": 0.0}
        row = rows.setdefault(label, empty)
        row["networks"] += 1
        row["decided"] += status == expected
        row["wrong"] += status in {"certified", "falsified"} - {expected}
        row["s in sum"] += seconds
        row["s at most"] = max(row["s at most"], seconds)
    return list(rows.values())
