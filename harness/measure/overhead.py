"""What the harness adds to a trial: the same trivial trials by harness.run, with Ray and MLflow, and in a bare loop;
and what its driver needs of memory."""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.device import best_device
from harness.storage import folder
from harness.storage.files import write_text
from harness.training import run_trial

_ELSEWHERE = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")  # servers and clusters that are no part of what is measured
_SWEEP = {
    "name": "overhead",
    "dataset": "digits",
    "eps": "1/16",
    "width": 0.05,
    "train_images": 64,
    "train": {"epochs": 2, "batch_size": 32, "ramp_start": 1, "ramp_epochs": 1, "decay_epochs": []},
    "evaluation": {"stages": ["ibp"], "test_images": 10, "attack_steps": 1, "attack_restarts": 1},
    "trials": [{"model": "cnn5", "method": "ibp"}],
}


class _Run(NamedTuple):
    """Seconds of a harness.run: in all, until the first row of an epoch was on disk, and after the last result was; and
    its driver's peak memory in MB, NaN where there is no /proc."""

    whole: float
    first: float
    after: float
    memory: float


def overhead(options: argparse.Namespace, bench: Any, peaks: dict[str, float]) -> list[dict[str, Any]]:
    """Seconds of trivial trials and what one costs; of the command until a trial's first epoch is on disk."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        sweep = place / "overhead.yaml"
        more: dict[str, Any] = {"seeds": list(range(options.trials))}
        more["resources"] = {"cpu": 1, "gpu": 1 if best_device().type == "cuda" else 0}
        write_text(sweep, json.dumps(_SWEEP | more))  # which is YAML too
        command = [sys.executable, "-m", "harness.run", str(sweep), "--results-dir", str(place / "results")]
        run = _timed(command, place)
        export = [*command, "--export", str(place / "trials")]
        subprocess.run(export, check=True, capture_output=True)
        bare = _bare(sorted((place / "trials").glob("*.json")), place / "bare")
    side_by_side = min(os.cpu_count() or 1, options.trials)  # as many at a time as there are cores
    added = (run.whole - run.first - bare / side_by_side) / options.trials
    return [
        {"what": f"harness.run of {options.trials} trials, seconds", "value": run.whole},
        {"what": "of those until a first epoch is on disk", "value": run.first},
        {"what": "of those after the last result", "value": run.after},
        {"what": "bare loop, seconds", "value": bare},
        {"what": "added a trial, once the first has begun, seconds", "value": added},
        {"what": "driver's peak memory, MB", "value": run.memory},
    ]


def _timed(command: list[str], place: Path) -> _Run:
    started, first, memory = time.perf_counter(), math.nan, math.nan
    with open(place / "log", "w+") as log:
        here = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
        process = subprocess.Popen(command, cwd=place, stdout=log, stderr=subprocess.STDOUT, env=here)
        while process.poll() is None:
            if math.isnan(first) and any(folder.read_epochs(path)[1:] for path in place.glob("results/*/trials/*")):
                first = time.perf_counter() - started
            with suppress(OSError, ValueError):  # it has ended, or this is no Linux
                (peak,) = re.findall(r"VmHWM:\s*(\d+)", Path(f"/proc/{process.pid}/status").read_text())
                memory = int(peak) / 1000
            time.sleep(0.1)
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f"harness.run failed: {log.read()[-500:]}")
    whole, ended = time.perf_counter() - started, time.time()
    last = max(path.stat().st_mtime for path in place.glob(f"results/*/trials/*/{folder.RESULT}"))
    return _Run(whole, first, ended - last, memory)


def _bare(trials: list[Path], place: Path) -> float:
    """Seconds of all trials, one after the other in this process."""
    started = time.perf_counter()
    for path in trials:
        run_trial(folder.read_trial(path).config, place / path.stem)
    return time.perf_counter() - started
