"""A sweep on a cluster of two machines, whose workers, drivers and raylets are killed at random, ends as a quiet one.

Raylets are machines to Ray. Without the first one's there is no cluster: it is started anew then, with the second.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from processes import alive, descendants, wait_for, workers
from ray_nodes import raylet_of, start_node, stop_node
from servers import free_port
from study import POLITENESS, SETTINGS, TINY, Study

from harness.storage import folder, names

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(5400),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MLflow's, of SQLAlchemy
]

KILLS = ["worker"] * 8 + ["driver"] * 6 + ["second machine"] * 4 + ["first machine"] * 2
PATIENCE = 300  # seconds for whatever must happen, on a machine that does other things too
LINGERING = 2.0  # seconds, at most, between an epoch that ends and a kill
SOAK = {
    **TINY,
    "name": "soak",
    "seeds": list(range(8)),
    "width": 0.1,
    "train_images": 640,
    "train": {**TINY["train"], "epochs": 12},
    "trials": [{"model": ["cnn5", "cnn7", "cerdeq"], "method": "ibp"}],
}
TIMES = (names.EVALUATION_SECONDS, names.TRAIN_SECONDS, names.TRAIN_EPOCH_SECONDS, names.TRAIN_EXAMPLES_PER_SECOND)


class Cluster:
    """Two machines and a driver, all processes of this one."""

    def __init__(self, root):
        (root / "home").mkdir()
        inherited = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "RAY_AUTH_MODE")}
        self.environment = {**inherited, **POLITENESS, "HOME": str(root / "home")}
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        memory = "--object-store-memory=100000000"
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={root}/ray", memory)
        self.options = [head, (f"--address={self.address}", memory)]
        self.nodes, self.driver, self.processes = [], None, set()

    def start_from(self, number):
        """Start a machine and those after it again."""
        for node in self.nodes[number:]:
            stop_node(node)
        self.nodes[number:] = [start_node(self.environment, *options) for options in self.options[number:]]

    def stop(self):
        if self.driver is not None:
            self.driver.kill()
        for node in self.nodes:
            stop_node(node)

    def drive(self, study):
        """Start the command; its output goes to the file `printed`."""
        command = [sys.executable, "-m", "harness.run", *study.options, "--ray-address", self.address]
        with open(study.root / "printed", "a") as log:
            self.driver = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def workers(self):
        return [worker for node in self.nodes for worker in workers(node.pid)]

    def kill(self, kind, random):
        """Kill a process of this kind, if there is one."""
        for process in [self.driver, *self.nodes]:
            self.processes.update([process.pid, *descendants(process.pid)])
        with suppress(ProcessLookupError, IndexError):
            if kind == "worker":
                os.kill(random.choice(self.workers()), signal.SIGKILL)
            elif kind == "driver":
                self.driver.kill()
            else:
                number = 0 if kind == "first machine" else 1
                os.kill(raylet_of(self.nodes[number]), signal.SIGKILL)
                self.start_from(number)


@pytest.fixture
def root():
    """A directory whose name is short enough for Ray's sockets."""
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def cluster(root):
    cluster = Cluster(root)
    try:
        cluster.start_from(0)
        yield cluster
    finally:
        cluster.stop()


def test_a_sweep_that_is_killed_again_and_again_ends_as_a_quiet_one(root, cluster):
    quiet, soaked = studies = [make_study(root / name) for name in ("quiet", "soaked")]
    cluster.drive(quiet)
    assert cluster.driver.wait() == 0, (quiet.root / "printed").read_text()
    soak(cluster, soaked)
    cluster.stop()
    wait_for(lambda: not any(map(alive, cluster.processes)), 60)
    assert "raylet" not in (soaked.root / "printed").read_text(), "what Ray prints is for its log"
    for study in studies:
        study.assert_complete(printed=["ray.log"])
    assert contents(soaked) == contents(quiet)
    assert logged(soaked) == logged(quiet)
    assert table(soaked) == table(quiet)


def make_study(directory):
    directory.mkdir()
    return Study(directory, SOAK, f"sqlite:///{directory}/mlflow.db")


def soak(cluster, study):
    """Run the sweep to its end with all the kills on the way."""
    drawn = random.Random(0)
    cluster.drive(study)
    for kind in drawn.sample(KILLS, len(KILLS)):
        wait_for_an_epoch(cluster, study)
        time.sleep(drawn.uniform(0, LINGERING))
        cluster.kill(kind, drawn)
        if kind in ("driver", "first machine"):
            cluster.driver.wait(PATIENCE)
            cluster.drive(study)
    for _ in range(5):  # a trial whose worker was killed three times has failed, and is tried again
        if cluster.driver.wait() == 0:
            return
        cluster.drive(study)
    pytest.fail((study.root / "printed").read_text())


def wait_for_an_epoch(cluster, study):
    """Wait until a trial has trained an epoch from now on; start the driver again if it has ended."""

    def epochs():
        return [len(folder.read_epochs(trial_dir)) for trial_dir in study.trial_dirs.values()]

    before, until = epochs(), time.monotonic() + PATIENCE
    while not (cluster.workers() and epochs() != before):
        assert time.monotonic() < until, (study.root / "printed").read_text()
        if cluster.driver.poll() is not None:
            assert cluster.driver.returncode != 0, "the sweep has ended before all kills"
            cluster.drive(study)
        time.sleep(0.1)


def without_times(values):
    return {name: value for name, value in values.items() if not name.startswith((*TIMES, names.seconds_of("")))}


def contents(study):
    """What each trial's folder holds, except for times."""
    exact = (folder.WEIGHTS, folder.VERDICTS, folder.COUNTEREXAMPLES, folder.TRIAL)
    return {
        trial_dir.name: (
            {path.name: path.read_bytes() if path.name in exact else None for path in trial_dir.rglob("*")},
            list(map(without_times, folder.read_epochs(trial_dir))),
            without_times(folder.read_result(trial_dir).metrics),
            folder.read_result(trial_dir).warnings,
        )
        for trial_dir in study.trial_dirs.values()
    }


def logged(study):
    """What each trial's run has, except for times, its id and digests of files that hold times."""
    runs = {}
    for key, run in study.runs.items():
        points = {name: study.history(key, name) for name in without_times(run.data.metrics)}
        tags = {name: text for name, text in run.data.tags.items() if not name.startswith("mlflow.")}
        tags = {name: text for name, text in tags.items() if name not in ("result", "network", "tables")}
        runs[key] = run.info.status, points, run.data.params, tags
    return runs


def table(study):
    rows = json.loads((study.directory / "leaderboard.json").read_text())
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]
