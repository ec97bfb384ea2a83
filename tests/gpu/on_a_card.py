"""Run on a GPU what no CPU can show, under Ray, and leave logs, tables and weights in one folder.

    uv run python -m tests.gpu.on_a_card OUT --data-dir DIR --minutes 28

Each part writes OUT/PART.log, and sweeps their results to OUT/PART. OUT/summary.md has a row for each part, and every
line that says "given up", "warning" or "out of memory". A part that fails does not stop the others. The last part
trains rows at full width until the time ends; the same command continues them. README.md beside this file says how to
rehearse it without a card.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.harness.tune.processes import workers

ROOT = Path(__file__).parents[2]
_IBP_ROWS = ("cnn7 ibp", "cerdeq ibp gain=None*", "cerdeq ibp recurrent=False")
WAVES = [*([f"{row} seed {seed}" for row in _IBP_ROWS] for seed in (0, 1, 2)), ["c* crown-ibp * seed 0"]]
"""Rows at full width, the most important first."""
WORTH_READING = ("given up", "warning", "out of memory", "failed", "error:")
QUICKSTART = ["sweeps/quickstart.yaml", "--profile", "full"]
LONG = ["--only", "cnn7 *", "--set", "train.epochs=60", "--set", "train.decay_epochs=[]"]


class Card:
    """The folder of a run, the time it may take, and the arguments that every sweep gets."""

    def __init__(self, options: argparse.Namespace):
        self.out: Path = options.out.resolve()
        self.end = time.monotonic() + 60 * options.minutes
        self.arguments = [part for change in options.set for part in ("--set", change)]
        if options.data_dir:
            self.arguments += ["--data-dir", str(options.data_dir.resolve())]

    def start(self, part: str, *command: str) -> subprocess.Popen[bytes]:
        """Start Python with a command; what it prints goes to the part's log."""
        with (self.out / f"{part}.log").open("ab") as log:
            log.write(f"$ python {' '.join(command)}\n".encode())
            log.flush()
            return subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, process: subprocess.Popen[bytes], seconds: float = float("inf")) -> int:
        """Return the exit status of a process; after its time, or ours, it gets SIGTERM, and a minute later SIGKILL."""
        for limit, number in ((min(seconds, self.end - time.monotonic()), signal.SIGTERM), (60, signal.SIGKILL)):
            try:
                return process.wait(max(0, limit))
            except subprocess.TimeoutExpired:
                process.send_signal(number)
        return process.wait()

    def run(self, part: str, *command: str, seconds: float = float("inf")) -> int:
        """Run Python with a command to its end."""
        return self.wait(self.start(part, *command), seconds)

    def sweep(self, part: str, *arguments: str) -> list[str]:
        """Return the command of a sweep with results in the part's folder."""
        store = f"sqlite:///{self.out / 'mlflow.db'}"
        own = ["--results-dir", str(self.out / part), "--tracking-uri", store]
        return ["-m", "harness.run", *self.arguments, *arguments, *own]


def machine(card: Card) -> int:
    """Describe the card, the driver and the versions."""
    code = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())"
    with (card.out / "machine.log").open("ab") as log:
        subprocess.run("nvidia-smi", shell=True, stdout=log, stderr=log, check=False)
    return card.run("machine", "-c", code)


def shares(card: Card) -> int:
    """Let two trials share the card, then four; each must end with a table and with runs in MLflow."""
    return max(
        card.run(part := f"shares-{share}", *card.sweep(part, *QUICKSTART, "--set", f"resources.gpu={share}"))
        for share in (0.5, 0.25)
    )


def killed_worker(card: Card) -> int:
    """Kill one of four workers in the middle; Ray must replace it, and the command end well."""
    driver = card.start("killed_worker", *card.sweep("killed_worker", *QUICKSTART, *LONG))
    _wait_for_epochs(card, "killed_worker", driver)
    for worker in workers(driver.pid)[:1]:
        os.kill(worker, signal.SIGKILL)
    return card.wait(driver)


def killed_driver(card: Card) -> int:
    """Kill the driver in the middle; the same command must continue."""
    command = card.sweep("killed_driver", *QUICKSTART, *LONG)
    driver = card.start("killed_driver", *command)
    _wait_for_epochs(card, "killed_driver", driver)
    driver.kill()
    driver.wait()
    return card.run("killed_driver", *command)


def no_memory(card: Card) -> int:
    """Give a trial too small a part of the card's memory: it must divide its batches, or fail and say so."""
    schedule = ("train.epochs=2", "train.ramp_start=1", "train.ramp_epochs=1", "train.decay_epochs=[]")
    settings = ("resources.gpu=0.02", "train.batch_size=512", "train_images=4096", *schedule)
    changes = [part for setting in settings for part in ("--set", setting)]
    only = ["--only", "cnn7 crown-ibp seed 0"]
    return card.run("no_memory", *card.sweep("no_memory", "sweeps/cifar10.yaml", "--profile", "full", *only, *changes))


def tests(card: Card) -> int:
    """Run the tests that are marked `gpu`."""
    return card.run("tests", "-m", "pytest", "-m", "gpu", "-q", "-n", "8", seconds=420)


def steps(card: Card) -> int:
    """Time a training step of CNN-7 by IBP in every precision, and list its kernels."""
    kinds = ["--kinds", "ibp *"]
    common = ["-m", "harness.benchmark", "cnn7", "--only", "steps", *kinds, "--json"]
    timed = [card.run("steps", *common, str(card.out / f"steps-{n}.json"), "--batch-size", str(n)) for n in (128, 512)]
    return max(*timed, card.run("steps", "-m", "tests.gpu.kernels", str(card.out)))


def rows(card: Card) -> int:
    """Train the rows at full width, three at a time, as far as the time allows."""
    statuses = [0]
    for wave in WAVES:
        if time.monotonic() < card.end:
            only = [part for row in wave for part in ("--only", row)]
            sweep = card.sweep("rows", "sweeps/cifar10.yaml", "--profile", "full", "--set", "resources.gpu=0.33", *only)
            statuses.append(card.run("rows", *sweep))
    return max(statuses)


def _wait_for_epochs(card: Card, part: str, driver: subprocess.Popen[bytes]) -> None:
    """Wait until a trial has two epochs, the driver ends, or the time does."""
    while time.monotonic() < card.end and driver.poll() is None:
        files = (card.out / part).glob("*/trials/*/epochs.jsonl")
        if any(file.read_bytes().count(b"\n") >= 2 for file in files):
            return
        time.sleep(0.2)


PARTS: dict[str, Callable[[Card], int]] = {
    part.__name__: part for part in (machine, shares, killed_worker, killed_driver, no_memory, tests, steps, rows)
}


def worth_reading(out: Path) -> list[str]:
    """Return the lines of all logs that say that something was given up or went wrong."""
    return [
        f"- {log.stem}: {line.strip()}"
        for log in sorted(out.glob("*.log"))
        for line in log.read_text(errors="replace").splitlines()
        if any(word in line.lower() for word in WORTH_READING)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of logs, tables and weights")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies")
    parser.add_argument("--minutes", type=float, default=28, help="time for everything; default: 28")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts; default: all, in order")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every sweep, as in run")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    card, table = Card(options), ["| part | exit status | seconds |", "|---|---|---|"]
    for part in options.only:
        began = time.monotonic()
        status = PARTS[part](card) if began < card.end else "not run: no time left"
        table.append(f"| {part} | {status} | {time.monotonic() - began:.0f} |")
        print(table[-1], flush=True)
        (card.out / "summary.md").write_text("\n".join([*table, "", *worth_reading(card.out), ""]))


if __name__ == "__main__":
    main()
