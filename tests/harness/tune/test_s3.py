"""A sweep whose results lie at an S3-compatible server: stopped, killed and gone on with from other machines."""

import os
import signal
import subprocess
import sys

import pytest
from processes import alive, wait_for, workers
from ray_nodes import running_node
from servers import BUCKET, client, free_port, s3
from study import LONG, POLITENESS, TINY, Study

from harness.storage import folder, remote
from harness.training import run_trial
from harness.tune.shared import MARK, local_mirror

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy; botocore's
PREFIX = "some/prefix"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    with s3(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        remote._open.cache_clear()  # of a server that another test had
        yield environment


def objects(environment):
    """The files in the bucket, as a client that is not pyarrow sees them: content tag and time, by name."""
    pages = client(environment).get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    contents = [each for page in pages for each in page.get("Contents", [])]
    return {each["Key"]: (each["ETag"], each["LastModified"]) for each in contents if not each["Key"].endswith("/")}


class Machine(Study):
    """A machine with nothing but the sweep file and access to the bucket: its mirror is its own."""

    def __init__(self, directory, content, store):
        directory.mkdir()
        super().__init__(directory, content, store)
        self.uri = f"s3://{BUCKET}/{PREFIX}"
        self.options[self.options.index("--results-dir") + 1] = self.uri

    def files(self):
        return super().files() - {MARK, "ray.log"}

    def rows(self):
        """The epochs in the bucket, by trial."""
        return {
            made.key: (remote.read(f"{self.uri}/{self.name}", f"trials/{made.key}/epochs.jsonl") or b"").splitlines()
            for made in self.trials.values()
        }

    def ended(self, number, epochs):
        """The command, sent a signal once a trial has so many epochs, and what it printed."""
        driver = self.start(cwd=self.root)
        try:
            wait_for(lambda: any(len(folder.read_epochs(path)) > epochs for path in self.trial_dirs.values()), 600)
            running = workers(driver.pid)
            assert running
            driver.send_signal(number)
            out, err = driver.communicate(timeout=100)
        finally:
            driver.kill()
        wait_for(lambda: not any(map(alive, running)), 15)
        assert not list(self.directory.rglob(folder.CHECKPOINT)), "only workers need them"
        return driver.returncode, out + err


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_sweep_goes_on_from_machine_to_machine_to_the_very_same_end(tmp_path, store, bucket, monkeypatch):
    content = {**LONG, "name": "elsewhere", "seeds": [0, 1], "width": 0.1, "train_images": 640}
    one, two, three = (Machine(tmp_path / name, content, store) for name in ("one", "two", "three"))

    status, printed = one.ended(signal.SIGINT, 2)
    assert status == 3, printed
    stopped = {key: rows for key, rows in one.rows().items() if rows}
    checkpoints = [name for name in objects(bucket) if name.endswith(folder.CHECKPOINT)]
    assert len(checkpoints) == len(stopped), "a stopped trial has its checkpoint in the bucket"
    assert not [name for name in objects(bucket) if name.endswith((folder.RESULT, folder.STOP))]

    two.ended(signal.SIGKILL, max(map(len, stopped.values())) + 1)
    for key, rows in stopped.items():
        assert two.rows()[key][: len(rows)] == rows, "epochs with a checkpoint are not trained again: to the second"

    command = [sys.executable, "-m", "harness.run", *three.options]
    done = subprocess.run(command, cwd=three.root, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"\nAnd at:\n{three.uri}/elsewhere\n" in done.stdout
    for key, rows in stopped.items():
        assert three.rows()[key][: len(rows)] == rows
    made = next(made for made in three.trials.values() if made.key in stopped)
    run_trial(made.config, quiet := tmp_path / "quiet")
    for name in (folder.WEIGHTS, folder.COUNTEREXAMPLES):
        there = remote.read(f"{three.uri}/elsewhere", f"trials/{made.key}/{name}")
        assert there == (quiet / name).read_bytes(), name
    assert set(three.runs) == {made.key for made in three.trials.values()}
    three.assert_complete()

    before = objects(bucket)
    trials = {name for name in before if "/trials/" in name}
    assert {name.rpartition("/")[2] for name in trials} == {
        *(folder.LOG, folder.TRIAL, folder.EPOCHS, folder.CHECKPOINT, folder.WEIGHTS, folder.VERDICTS),
        *(folder.COUNTEREXAMPLES, folder.RESULT, folder.TRAINED_ON),
    }
    assert {f"{PREFIX}/elsewhere/leaderboard.md", f"{PREFIX}/elsewhere/report.html"} <= before.keys()
    again = subprocess.run(command, cwd=one.root, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 finished already" in again.stdout
    after = objects(bucket)
    assert {name: after[name] for name in trials} == {name: before[name] for name in trials}
    monkeypatch.chdir(two.root)
    assert local_mirror(f"{two.uri}/elsewhere") == two.directory
    assert all(folder.read_result(trial_dir) for trial_dir in two.trial_dirs.values())


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_machines_of_a_cluster_share_by_the_address_alone(tmp_path, store, bucket):
    """The machine that trains first checks that it can use the storage."""
    machine = Machine(tmp_path / "driver", TINY, store)
    nowhere = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    refused = on_two_machines(machine, nowhere)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert f"{machine.uri}/tiny cannot be used: " in refused.stderr and "of the Ray cluster" in refused.stderr
    assert not [name for name in objects(bucket) if name.endswith(folder.EPOCHS)], "nothing was trained"
    done = on_two_machines(machine, {})
    assert done.returncode == 0, done.stdout + done.stderr
    machine.assert_complete()
    names = {name.rpartition("/")[2] for name in objects(bucket)}
    assert {folder.CHECKPOINT, folder.RESULT, "leaderboard.md"} <= names


def on_two_machines(machine, environment):
    """Run the command on a cluster whose second machine, which alone trains, has this environment."""
    address = f"127.0.0.1:{(port := free_port())}"
    base = {**os.environ, **POLITENESS, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "harness.run", *machine.options, "--ray-address", address]
    options = {"cwd": machine.root, "env": base, "capture_output": True, "text": True, "timeout": 900}
    head = ("--head", f"--port={port}", "--include-dashboard=false", "--num-cpus=0")
    with running_node(base, *head), running_node(base | environment, f"--address={address}"):
        return subprocess.run(command, check=False, **options)
