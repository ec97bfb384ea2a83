"""Sweeps during which a process of Ray, or the driver, is killed end as a quiet one, bit for bit.

On one machine the driver starts Ray; two machines are a cluster, which is started again where it has died.
Each second gcs_server dies as the first network ends: Tune then calls it, and waits in Ray's C++ code.
SOAK_ROUNDS=1 in the environment makes it one sweep, instead of ten, for each kind of process.
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
from pathlib import Path

import pytest
from processes import alive, descendants, named, wait_for
from ray_nodes import start_node, stop_node
from servers import free_port
from study import SETTINGS, TINY, Study

from harness.common import names
from harness.storage import folder, training_progress

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MLflow's, of SQLAlchemy
]

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "10"))  # sweeps for each kind of process
PATIENCE = 300  # seconds for whatever must happen, on a machine that does other things too
LINGERING = 3.0  # seconds, at most, between the first epoch and a kill
KINDS = {
    "raylet": "raylet",
    "dashboard agent": "ray::DashboardAgent",
    "runtime environment agent": "ray::RuntimeEnvAgent",
    "gcs_server": "gcs_server",
    "worker": "ray::ImplicitFunc",
    "all workers": "ray::ImplicitFunc",
    "driver": None,
}
RAYS_OWN = {"raylet", "dashboard agent", "runtime environment agent", "gcs_server"}  # a raylet ends with its agents
MOST_SECONDS = 180  # until a command whose Ray has died ends
SOAK = {
    **TINY,
    "name": "soak",
    "width": 0.1,
    "train_images": 640,
    "train": {**TINY["train"], "epochs": 12},
    "evaluation": [  # of so many ranges that workers share them, then a short one
        {**TINY["evaluation"], "batch_size": 5},
        {"eps": "1/32", **TINY["evaluation"], "stages": ["ibp", "crown-ibp", "crown"]},
    ],
    "trials": [{"model": ["cnn7", "cerdeq"], "method": "ibp"}],
}
TIMES = (names.EVALUATION_SECONDS, names.TRAIN_SECONDS, names.TRAIN_EPOCH_SECONDS, names.TRAIN_EXAMPLES_PER_SECOND)


class Machines:
    """A driver and the machines of its cluster, all processes of this one. Without a cluster the driver starts Ray."""

    def __init__(self, root, count):
        (root / "home").mkdir()
        inherited = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "RAY_AUTH_MODE")}
        self.environment = {**inherited, "HOME": str(root / "home")}
        port = free_port()
        memory = "--object-store-memory=100000000"
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={root}/ray", memory)
        self.starts = [head, (f"--address=127.0.0.1:{port}", memory)] if count == 2 else []
        self.address = ["--ray-address", f"127.0.0.1:{port}"] if count == 2 else []
        self.nodes, self.driver, self.seen = [], None, set()

    def start_from(self, number):
        """Start a machine and those after it again."""
        for node in self.nodes[number:]:
            stop_node(node)
        self.nodes[number:] = [start_node(self.environment, *options) for options in self.starts[number:]]

    def stop(self):
        if self.driver is not None:
            self.driver.kill()
        for node in self.nodes:
            stop_node(node)

    def drive(self, study):
        """Start the command; its output goes to the file `printed`."""
        command = [sys.executable, "-m", "harness.run", *study.options, *self.address]
        with open(study.root / "printed", "a") as log:
            self.driver = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def processes(self, kind):
        """The processes of a kind on each machine that has one."""
        hosts = self.nodes or [self.driver]
        self.seen.update(child for host in hosts for child in descendants(host.pid))
        return [found for host in hosts if (found := named(host.pid, KINDS[kind]))]

    def kill(self, kind, drawn):
        """Kill a process of this kind; start those machines again that have died of it."""
        if kind == "driver":
            self.driver.kill()
            return
        of_machine = drawn.choice(self.processes(kind))
        for process in of_machine if kind == "all workers" else [drawn.choice(of_machine)]:
            os.kill(process, signal.SIGKILL)
        if self.nodes and kind in RAYS_OWN:
            wait_for(self.dead, PATIENCE)
            self.start_from(self.nodes.index(self.dead()[0]))

    def dead(self):
        """The machines without a raylet; `ray start --block` may not end with it."""
        return [node for node in self.nodes if not named(node.pid, "raylet")]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A sweep that nobody disturbs."""
    directory = tmp_path_factory.mktemp("quiet")
    study, machine = make_study(directory / "study"), Machines(directory, 1)
    machine.drive(study)
    assert machine.driver.wait() == 0, (study.root / "printed").read_text()
    return study


@pytest.fixture
def root():
    """A directory whose name is short enough for Ray's sockets."""
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def machines(root, request):
    machines = Machines(root, request.param)
    try:
        machines.start_from(0)
        yield machines
    finally:
        machines.stop()


@pytest.mark.timeout(ROUNDS * 2 * PATIENCE)
@pytest.mark.parametrize("machines", [1, 2], indirect=True, ids=["one machine", "two machines"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_in_which_a_process_is_killed_ends_as_a_quiet_one(root, machines, quiet, kind):
    drawn = random.Random(f"{kind} {len(machines.nodes)}")
    for number in range(ROUNDS):
        study = make_study(root / str(number))
        machines.drive(study)
        begun = is_evaluated if kind == "gcs_server" and number % 2 else training_progress.read_epochs
        wait_for(lambda study=study, begun=begun: any(map(begun, study.network_dirs.values())), PATIENCE)
        time.sleep(drawn.uniform(0, LINGERING / 6 if begun is is_evaluated else LINGERING))
        assert machines.driver.poll() is None, "the sweep has ended before the kill"
        killed = time.monotonic()
        machines.kill(kind, drawn)
        if kind in RAYS_OWN and not machines.nodes:
            assert machines.driver.wait(MOST_SECONDS) == 1, printed(study)
            print(f"{kind}: noticed after {time.monotonic() - killed:.1f} s: {printed(study).splitlines()[-1]}")
            machines.drive(study)
        drive_to_the_end(machines, study, goes_on_alone=not machines.nodes and kind.endswith(("worker", "workers")))
        study.assert_complete()
        assert contents(study) == contents(quiet)
        assert logged(study) == logged(quiet)
        assert table(study) == table(quiet)
    machines.stop()
    wait_for(lambda: not any(map(alive, machines.seen)), PATIENCE)


def drive_to_the_end(machines, study, goes_on_alone):
    """Wait for the driver's success, and start it again until then unless it goes on alone."""
    for _ in range(1 if goes_on_alone else 4):
        if machines.driver.wait(PATIENCE) == 0:
            return
        machines.drive(study)
    pytest.fail(printed(study))


def make_study(directory):
    directory.mkdir()
    return Study(directory, SOAK, f"sqlite:///{directory}/mlflow.db")


def printed(study):
    return (study.root / "printed").read_text()


def without_times(values):
    return {name: value for name, value in values.items() if not name.startswith((*TIMES, names.seconds_of("")))}


def is_evaluated(network_dir):
    return any(map(folder.read_result, folder.evaluation_folders(network_dir)))


def contents(study):
    """What each network's folder holds, except for times."""
    exact = (folder.WEIGHTS, folder.VERDICTS, folder.COUNTEREXAMPLES, folder.TRAINING, folder.EVALUATION)
    return {
        network_dir.name: (
            {
                path.relative_to(network_dir): path.read_bytes() if path.name in exact else None
                for path in network_dir.rglob("*")
            },
            list(map(without_times, training_progress.read_epochs(network_dir))),
            [
                (without_times(result.metrics), result.warnings, result.taken_over)
                for result in map(folder.read_result, folder.evaluation_folders(network_dir))
            ],
        )
        for network_dir in study.network_dirs.values()
    }


def logged(study):
    """What each run has, except for times, its id and digests of files that hold times."""
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
