"""The section `overhead`: what the harness adds to a trial, with Ray and MLflow, and its driver's memory."""

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
from typing import Any

import torch

from harness.storage import folder
from harness.storage.files import write_text
from harness.training import run_trial

_NOT_MEASURED = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")  # servers and clusters elsewhere
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


def measure_overhead(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return seconds of trivial trials by `harness.run` and one after the other in a bare loop."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        sweep = directory / "overhead.yaml"
        resources = {"cpu": 1, "gpu": 1 if device.type == "cuda" else 0}
        content = _SWEEP | {"seeds": list(range(options.trials)), "resources": resources}
        write_text(sweep, json.dumps(content))  # JSON is YAML, too
        command = [sys.executable, "-m", "harness.run", str(sweep), "--results-dir", str(directory / "results")]
        total, first, after, memory = _run(command, directory)
        export = [*command, "--export", str(directory / "trials")]
        subprocess.run(export, check=True, capture_output=True)
        bare = _bare_loop(sorted((directory / "trials").glob("*.json")), directory / "bare")
    side_by_side = min(os.cpu_count() or 1, options.trials)
    added = (total - first - bare / side_by_side) / options.trials
    return [
        {"quantity": f"harness.run of {options.trials} trials, seconds", "value": total},
        {"quantity": "of those until a first epoch is on disk", "value": first},
        {"quantity": "of those after the last result", "value": after},
        {"quantity": "bare loop, seconds", "value": bare},
        {"quantity": "added a trial, once the first has begun, seconds", "value": added},
        {"quantity": "driver's peak memory, MB", "value": memory},
    ]


def _run(command: list[str], directory: Path) -> tuple[float, float, float, float]:
    """Return a command's seconds, those until the first epoch and after the last result, and its peak memory in MB."""
    started, first, memory = time.perf_counter(), math.nan, math.nan
    with open(directory / "log", "w+") as log:
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_MEASURED}
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:
            if math.isnan(first) and any(folder.read_epochs(path)[1:] for path in directory.glob("results/*/trials/*")):
                first = time.perf_counter() - started
            with suppress(OSError, ValueError):  # the process has ended, or this is no Linux
                (peak,) = re.findall(r"VmHWM:\s*(\d+)", Path(f"/proc/{process.pid}/status").read_text())
                memory = int(peak) / 1000
            time.sleep(0.1)
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f"harness.run failed: {log.read()[-500:]}")
    total, ended = time.perf_counter() - started, time.time()
    last = max(path.stat().st_mtime for path in directory.glob(f"results/*/trials/*/{folder.RESULT}"))
    return total, first, ended - last, memory


def _bare_loop(trials: list[Path], directory: Path) -> float:
    """Return the seconds of all trials, one after the other in this process."""
    started = time.perf_counter()
    for path in trials:
        run_trial(folder.read_trial(path).config, directory / path.stem)
    return time.perf_counter() - started
