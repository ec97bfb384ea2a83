"""Run on a GPU what no CPU can show, under Ray, and leave logs, tables, verdicts and weights in one folder.

    uv run python tests/gpu/on_a_card.py OUT --data-dir DIR --minutes 28

Each part writes OUT/PART.log, and its sweeps write to OUT/PART. OUT/summary.md has a row for each part, and the lines
of the logs that warn or say that something failed. The same command continues the sweeps. README.md beside this
file has the parts, and how to rehearse them without a card.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/harness/work"))
from processes import workers  # noqa: E402

WORTH_READING = ("warning", "out of memory", "failed", "error:")
QUICKSTART = ["sweeps/quickstart.yaml", "--profile", "full"]
EAGER = ["--set", "train.compile=never", "--set", "train.decay_epochs=[]"]
LONG = [*QUICKSTART, "--only", "cnn7 *", "--set", "train.epochs=30", *EAGER]
LARGE = [*QUICKSTART, "--only", "cnn7 crown-ibp seed 0", "--set", "train_images=512", "--set", "train.batch_size=512"]
LARGE += ["--set", "width=0.5", "--set", "train.epochs=2", "--set", "train.ramp_epochs=1", *EAGER]
TOO_SMALL, FOR_HALF = 100e6, 590e6  # bytes; a step of LARGE takes 640e6, half a batch 350e6 (530e6 in a rehearsal)
WAVES = [("ibp", 0), ("ibp", 1), ("ibp", 2), ("crown-ibp", 0)]  # method and seed, the most important first


class Card:
    """The folder of a run, the time it may take, the arguments of every sweep, and how the part's commands ended."""

    def __init__(self, options: argparse.Namespace):
        self.out: Path = options.out.resolve()
        self.arguments = [part for change in options.set for part in ("--set", change)]
        if options.data_dir:
            self.arguments += ["--data-dir", str(options.data_dir.resolve())]
        self.part, self.part_end, self.ends = "", 0.0, list[str]()

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start Python with a command; what it prints goes to the part's log."""
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        own = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        with (self.out / f"{self.part}.log").open("ab") as log:
            log.write(f"$ python {' '.join(command)}\n".encode())
            log.flush()
            return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=own, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Note how a process ends. At the end of the part's time it gets SIGTERM, and a minute later SIGKILL."""
        try:
            for limit in (self.part_end - time.monotonic(), 60):
                try:
                    process.wait(max(0, limit))
                    break
                except subprocess.TimeoutExpired:
                    process.terminate()
        finally:
            process.kill()  # does nothing if it has ended
            self.ends.append(str(process.wait()))

    def run(self, *command: str) -> None:
        """Run Python with a command, unless the part has no time left."""
        if time.monotonic() < self.part_end:
            self.wait(self.start(*command))

    def sweep(self, folder: str, *arguments: str) -> list[str]:
        """Return the command of a sweep with results in a folder."""
        own = ["--results-dir", str(self.out / folder), "--tracking-uri", f"sqlite:///{self.out}/mlflow/mlflow.db"]
        return ["-m", "harness.run", *self.arguments, *arguments, *own]


def machine(card: Card) -> None:
    """Describe the machine, the card, its driver and the versions."""
    shell = "nproc; free -g; df -h . /dev/shm; nvidia-smi"
    card.run("-c", f"import os, torch; os.system({shell!r}); print(torch.__version__, torch.version.cuda)")


def shares(card: Card) -> None:
    """Let four networks share the card, then two; each must end with a table and with runs in MLflow."""
    card.run(*card.sweep("shares-4", *QUICKSTART, "--set", "resources.gpu=0.25"))
    card.run(*card.sweep("shares-2", *QUICKSTART, "--set", "resources.gpu=0.5", "--only", "cnn7 *"))


def killed_worker(card: Card) -> None:
    """Kill one of four workers in the middle; Ray must replace it, and the command end well."""
    driver = _start_epochs(card)
    for worker in workers(driver.pid)[:1]:
        os.kill(worker, signal.SIGKILL)
        card.ends.append("killed one")
    card.wait(driver)


def killed_driver(card: Card) -> None:
    """Kill the driver in the middle; the same command must continue."""
    driver = _start_epochs(card)
    driver.kill()
    card.wait(driver)
    card.run(*card.sweep(card.part, *LONG))


def no_memory(card: Card) -> None:
    """Give a network too little memory: it must fail and say so. With more, and batches in two parts, it must end."""
    code = "import torch; print(torch.cuda.get_device_properties(0).total_memory)"
    total = int(subprocess.check_output([sys.executable, "-c", code], timeout=card.part_end - time.monotonic()))
    for size, parts in ((TOO_SMALL, 1), (FOR_HALF, 2)):  # of a share this small, half is for tensors
        own = ["--set", f"resources.gpu={2 * size / total:.4f}", "--set", f"train.accumulate={parts}"]
        card.run(*card.sweep(card.part, *LARGE, *own))


def tests(card: Card) -> None:
    """Run the tests that are marked `gpu`."""
    files = sorted(str(path) for path in ROOT.glob("tests/**/test_*.py") if "mark.gpu" in path.read_text())
    card.run("-m", "pytest", "-m", "gpu", "-v", "-n", "8", *files)


def steps(card: Card) -> None:
    """Time a training step of CNN-7 by IBP in every precision, and list its kernels."""
    for size in ("128", "512"):
        own = ["--kinds", "ibp *", "--batch-size", size, "--json", str(card.out / f"steps-{size}.json")]
        card.run("-m", "harness.benchmark", "cnn7", "--only", "steps", *own)
    card.run("tests/gpu/kernels.py", str(card.out))


def rows(card: Card) -> None:
    """Train rows at full width, one at a time: the first ends soonest so, and two would share the card's time."""
    own = ["sweeps/cifar10.yaml", "--profile", "full", "--set", "resources.gpu=1"]
    for method, seed in WAVES:
        only = ["--only", f"cnn7 {method} seed {seed}", "--only", f"cerdeq {method} * seed {seed}"]
        card.run(*card.sweep(card.part, *own, *only))


def _start_epochs(card: Card) -> subprocess.Popen[bytes]:
    """Start the sweep LONG, and return it once a network has two epochs, it ends, or the part's time does."""
    driver = card.start(*card.sweep(card.part, *LONG))
    while time.monotonic() < card.part_end and driver.poll() is None:
        files = (card.out / card.part).glob("*/networks/*/epochs.jsonl")
        if any(file.read_bytes().count(b"\n") >= 2 for file in files):
            break
        time.sleep(0.2)
    return driver


PARTS: dict[str, Callable[[Card], None]] = {
    part.__name__: part for part in (machine, shares, killed_worker, killed_driver, no_memory, tests, steps, rows)
}


def write_summary(out: Path, table: list[str]) -> None:
    """Write the table of parts, and each line of the logs that warns or says that something went wrong."""
    counts = Counter(
        f"{log.stem}: {line.strip()}"
        for log in sorted(out.glob("*.log"))
        for line in log.read_text(errors="replace").splitlines()
        if any(word in line.lower() for word in WORTH_READING) and not line.startswith("$")
    )
    lines = [f"- {line}{f' ({count} times)' if count > 1 else ''}" for line, count in counts.items()]
    header = ["| part | its commands ended with | seconds |", "|---|---|---|"]
    (out / "summary.md").write_text("\n".join([*header, *table, "", *lines, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of logs, tables, verdicts and weights")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies")
    parser.add_argument("--minutes", type=float, default=28, help="time for everything; default: 28")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts, in order; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every sweep, as in run")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
    card, end = Card(options), time.monotonic() + 60 * options.minutes
    (card.out / "mlflow").mkdir(parents=True, exist_ok=True)
    before = (card.out / "summary.md").read_text() if (card.out / "summary.md").exists() else ""
    table = [line for line in before.splitlines() if line.startswith("| ")][1:]  # of earlier commands, less the header
    for part in options.only:
        began = time.monotonic()
        left = max(0, end - began)
        card.part, card.part_end, card.ends = part, began + (left if part == options.only[-1] else left / 2), []
        write_summary(card.out, [*table, f"| {part} | running | |"])
        try:
            PARTS[part](card)
        except Exception as error:
            card.ends.append(f"{type(error).__name__}: {error}")
        finally:
            table.append(f"| {part} | {', '.join(card.ends) or 'no time left'} | {time.monotonic() - began:.0f} |")
            print(table[-1], flush=True)
            for trained in card.out.glob("*/*/networks/*/trained.json"):
                (trained.parent / "checkpoint.pt").unlink(missing_ok=True)  # three times as large as the weights
            write_summary(card.out, table)


if __name__ == "__main__":
    main()
