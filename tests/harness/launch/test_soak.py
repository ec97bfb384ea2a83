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
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient
from processes import alive, descendants, wait_for, workers
from ray_nodes import free_port, raylet_of, start_node, stop_node
from study import POLITENESS, SETTINGS, TINY, Study

from harness.storage import folder, names

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(5400),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MLflow's, of SQLAlchemy
]

KILLS = {"worker": 8, "driver": 6, "second machine": 4, "first machine": 2}
SEED = 0
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
FILES = (folder.WEIGHTS, folder.VERDICTS, folder.COUNTEREXAMPLES, folder.TRIAL)


class Cluster:
    """Two machines, and every process that was seen below them and below drivers."""

    def __init__(self, directory):
        (directory / "home").mkdir()
        self.environment = {
            name: value for name, value in os.environ.items() if name not in (*SETTINGS, "RAY_AUTH_MODE")
        }
        self.environment |= {**POLITENESS, "HOME": str(directory / "home"), "RAY_USAGE_STATS_ENABLED": "0"}
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        memory = "--object-store-memory=100000000"
        self.first = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={directory}/ray", memory)
        self.second = (f"--address={self.address}", memory)
        self.nodes, self.drivers, self.seen = [], [], set()
        self.ended = threading.Event()
        self.watching = threading.Thread(target=self._watch)

    def __enter__(self):
        self.start()
        self.watching.start()
        return self

    def __exit__(self, *error):
        for process in [*self.drivers, *self.nodes]:
            process.kill() if process in self.drivers else stop_node(process)
        self.ended.set()
        self.watching.join()

    def start(self):
        self.nodes = [start_node(self.environment, *options) for options in (self.first, self.second)]

    def restart(self, number):
        """The machine, where its raylet was killed; of the first one, the cluster."""
        for node in self.nodes if number == 0 else self.nodes[1:]:
            stop_node(node)
        if number == 0:
            self.start()
        else:
            self.nodes[1] = start_node(self.environment, *self.second)

    def drive(self, study):
        """The command, in a process of its own."""
        command = [sys.executable, "-m", "harness.run", *study.options, "--ray-address", self.address]
        with open(study.root / "printed", "a") as log:
            self.drivers.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))
        return self.drivers[-1]

    def workers(self):
        return [worker for node in self.nodes for worker in workers(node.pid)]

    def _watch(self):
        while not self.ended.wait(0.3):
            for process in [*self.drivers, *self.nodes]:
                if process.poll() is None:
                    self.seen.update([process.pid, *descendants(process.pid)])


@pytest.fixture
def place():
    """A directory whose name is short enough for Ray's sockets."""
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_a_sweep_that_is_killed_again_and_again_ends_as_a_quiet_one(place, capsys):
    killed, drawn = Counter(), random.Random(SEED)
    studies = [_study(place / name) for name in ("quiet", "soaked")]
    quiet, soaked = studies
    with Cluster(place) as cluster:
        began = time.monotonic()
        assert cluster.drive(quiet).wait() == 0, (quiet.root / "printed").read_text()
        middle = time.monotonic()
        ends = _soak(cluster, soaked, killed, drawn)
        ended = time.monotonic()
    wait_for(lambda: not any(map(alive, cluster.seen)), 60)
    with capsys.disabled():
        print(f"\n{len(soaked.trials)} trials, {killed.total()} kills: {dict(killed)}; drivers ended with {dict(ends)}")
        print(f"seconds: {middle - began:.0f} quiet, {ended - middle:.0f} soaked; {len(cluster.seen)} processes seen")
    assert killed == KILLS
    assert "raylet" not in (soaked.root / "printed").read_text(), "Ray's words are for its log"
    for study in studies:
        study.assert_complete(printed=["ray.log"])
    assert _left(soaked) == _left(quiet)
    assert _folders(soaked) == _folders(quiet)
    assert _logged(soaked) == _logged(quiet)
    assert _table(soaked) == _table(quiet)


def _study(directory):
    directory.mkdir()
    return Study(directory, SOAK, f"sqlite:///{directory}/mlflow.db")


def _soak(cluster, study, killed, drawn):
    """Run the sweep to its end with all the kills on the way; how often drivers ended with which status."""
    kinds = [kind for kind, count in KILLS.items() for _ in range(count)]
    drawn.shuffle(kinds)
    driver, ends = cluster.drive(study), Counter()
    for kind in kinds:
        driver = _in_the_middle(cluster, study, driver, ends)
        time.sleep(drawn.uniform(0, LINGERING))
        killed[kind] += _kill(cluster, kind, driver, drawn)
        if kind.endswith("machine"):
            cluster.restart(0 if kind == "first machine" else 1)
        if kind == "first machine":
            driver.wait(PATIENCE)
        if kind in ("driver", "first machine"):
            ends[driver.wait()] += 1
            driver = cluster.drive(study)
    for _ in range(5):  # a trial whose worker was killed three times has failed, and is tried again
        ends[status := driver.wait()] += 1
        if status == 0:
            return ends
        driver = cluster.drive(study)
    return pytest.fail((study.root / "printed").read_text())


def _in_the_middle(cluster, study, driver, ends):
    """Wait until a trial has trained an epoch from now on; the driver, another one where it has ended."""
    before, until = _epochs(study), time.monotonic() + PATIENCE
    while not (cluster.workers() and any(_epochs(study)[path] != count for path, count in before.items())):
        assert time.monotonic() < until, (study.root / "printed").read_text()
        if driver.poll() is not None:
            assert driver.returncode != 0, "the sweep has ended before all kills"
            ends[driver.returncode] += 1
            driver = cluster.drive(study)
        time.sleep(0.1)
    return driver


def _epochs(study):
    return {place: len(folder.read_epochs(place)) for place in study.places.values()}


def _kill(cluster, kind, driver, drawn):
    """Kill one of these; how many that were, none where none was left."""
    victims = {
        "worker": cluster.workers,
        "driver": lambda: [driver.pid] if driver.poll() is None else [],
        "first machine": lambda: [raylet_of(cluster.nodes[0])],
        "second machine": lambda: [raylet_of(cluster.nodes[1])],
    }[kind]()
    with suppress(ProcessLookupError, IndexError):
        os.kill(drawn.choice(victims), signal.SIGKILL)
        return 1
    return 0


def _left(study):
    """The names of all files, but for what Ray printed."""
    paths = {path.relative_to(study.directory) for path in study.directory.rglob("*")}
    return {str(path) for path in paths} - {"ray.log"}


def _without_times(values):
    times = (names.EVALUATION_SECONDS, names.TRAIN_SECONDS, names.TRAIN_EPOCH_SECONDS, names.TRAIN_EXAMPLES_PER_SECOND)
    return {name: value for name, value in values.items() if not name.startswith((*times, names.seconds_of("")))}


def _folders(study):
    """What each trial's folder has but for times."""
    return {
        place.name: {
            **{name: (place / name).read_bytes() for name in FILES},
            "epochs": list(map(_without_times, folder.read_epochs(place))),
            "metrics": _without_times(folder.read_result(place).metrics),
            "warnings": folder.read_result(place).warnings,
        }
        for place in study.places.values()
    }


def _logged(study):
    """What each trial's run has but for times and its id: every point of every metric, params, tags, artifacts."""
    client, found = MlflowClient(study.store), {}
    for key, run in study.runs.items():
        points = {name: _points(client, run, name) for name in _without_times(run.data.metrics)}
        tags = {name: text for name, text in run.data.tags.items() if not name.startswith("mlflow.")}
        del tags["result"], tags["network"], tags["tables"]  # digests of files that have times
        files = sorted(file.path for file in client.list_artifacts(run.info.run_id))
        models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
        found[key] = run.info.status, points, run.data.params, tags, files, [str(model.status) for model in models]
    return found


def _points(client, run, metric):
    points = client.get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in points)


def _table(study):
    rows = json.loads((study.directory / "leaderboard.json").read_text())
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]
