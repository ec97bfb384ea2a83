"""Whole commands with pretended GPUs: Ray finds them by NVML and places networks, which compute with values."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from pretended import environment, problem, run_python

from harness.common import names
from harness.storage import folder, training_progress

pytestmark = [pytest.mark.skipif(problem() is not None, reason=str(problem())), pytest.mark.timeout(600)]
SWEEP = {
    "name": "study",
    "dataset": "digits",
    "eps": "1/16",
    "seeds": [0],
    "width": 0.05,
    "train_images": 400,
    "train": {
        "epochs": 3, "batch_size": 64, "learning_rate": 5e-3, "ramp_start": 2, "ramp_epochs": 2, "decay_epochs": [],
        "compile": "never",
    },
    "evaluation": {"stages": ["ibp", "crown-ibp"], "test_images": 60, "attack_steps": 2, "attack_restarts": 1},
    "trials": [{"model": ["cnn5", "cerdeq"], "method": "ibp"}],
    "resources": {"cpu": 1, "gpu": 1},
}  # fmt: skip


class Machine:
    """A directory with a sweep file, and commands that run there on pretended GPUs."""

    def __init__(self, directory: Path, **changes):
        self.directory, self.log = directory, directory / "log"
        self.log.mkdir()
        (directory / "study.yaml").write_text(yaml.safe_dump(SWEEP | changes))

    def settings(self, **pretended: str) -> dict[str, str]:
        return {"PRETEND_VALUES": "1", "PRETEND_LOG": str(self.log), **pretended}

    def run(self, *arguments: str, **pretended: str) -> subprocess.CompletedProcess:
        return run_python(
            "-m", *arguments, cwd=self.directory, timeout=500, **self.settings(**pretended)
        )  # fmt: skip

    def sweep(self, *arguments: str, **pretended: str) -> subprocess.CompletedProcess:
        return self.run("harness.run", "study.yaml", "--profile", "full", *arguments, **pretended)

    def networks(self) -> list[Path]:
        return folder.network_folders(self.directory / "results/study")

    def results(self):
        return [folder.read_result(path) for each in self.networks() for path in folder.evaluation_folders(each)]

    def calls(self, name: str) -> list[dict]:
        """What each call of a function saw, in order."""
        seen = [json.loads(path.read_text()) for path in sorted(self.log.iterdir())]
        return [call for call in seen if call["call"] == name]


def assert_succeeded(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep that ran on four GPUs, one for each network."""
    machine = Machine(tmp_path_factory.mktemp("four"))
    assert_succeeded(machine.sweep(PRETEND_GPUS="4"))
    return machine


@pytest.mark.slow
def test_each_network_sees_the_gpu_that_ray_gave_it(finished):
    calls = finished.calls("do_job")
    assert len(calls) == 2 and all(call["count"] == 1 for call in calls)
    assert {call["visible"] for call in calls} == {"0", "1"}
    assert all(0.98 < call["share"] < 1 for call in calls), "all of the card but a context"


@pytest.mark.slow
def test_its_networks_end_on_gpus_with_errors_that_mean_something(finished):
    for result in finished.results():
        assert result.environment["device"] == "NVIDIA H200 (pretended)"
        assert result.metrics[names.STANDARD_ERROR] < 85
        assert result.warnings == []


@pytest.mark.slow
def test_a_further_evaluation_spreads_its_ranges_over_the_gpus(finished):
    change = "evaluation={stages: [ibp, crown-ibp], test_images: 150}"
    assert_succeeded(finished.run("harness.run", "results/study/sweep.yaml", "--set", change, PRETEND_GPUS="4"))
    calls = finished.calls("do_job")
    assert len({call["visible"] for call in calls}) > 1 and all(call["count"] == 1 for call in calls)


def test_a_driver_that_is_too_old_is_named_and_nothing_starts(tmp_path):
    machine = Machine(tmp_path)
    done = machine.run("harness.run", "study.yaml", "--here", PRETEND_FAULT="driver")
    assert done.returncode == 2 and machine.networks() == []
    assert "NVIDIA's driver lists 1 GPU; torch" in done.stderr and "docs/gpu.md" in done.stderr


@pytest.mark.slow
def test_two_networks_share_a_gpu_and_its_memory(tmp_path):
    machine = Machine(tmp_path, resources={"cpu": 1, "gpu": 0.5})
    assert_succeeded(machine.sweep(PRETEND_GPUS="1"))
    calls = machine.calls("do_job")
    assert [call["visible"] for call in calls] == ["0", "0"] and len({call["process"] for call in calls}) == 2
    assert all(0.48 < call["share"] < 0.5 for call in calls)


@pytest.mark.slow
def test_memory_that_runs_out_in_one_of_two_sharing_networks_ends_that_one_alone(tmp_path):
    machine = Machine(tmp_path, resources={"cpu": 1, "gpu": 0.5})
    once = tmp_path / "once"
    once.touch()
    done = machine.sweep(PRETEND_GPUS="1", PRETEND_FAULT=f"more-memory={once}")
    assert done.returncode == 1 and "out of memory; raise train.accumulate, or on a GPU resources.gpu" in done.stdout
    assert [result is None for result in machine.results()].count(True) == 1
    assert_succeeded(machine.sweep(PRETEND_GPUS="1"))  # the same command trains it again


@pytest.mark.slow
def test_a_network_that_reserves_no_gpu_does_not_take_one(tmp_path):
    machine = Machine(tmp_path, resources={"cpu": 1, "gpu": 0})
    assert_succeeded(machine.sweep(PRETEND_GPUS="4"))
    assert [call["count"] for call in machine.calls("do_job")] == [0, 0]
    assert all(result.environment["device"].startswith("CPU") for result in machine.results())


@pytest.mark.slow
def test_a_gpu_that_another_process_keeps_for_itself_fails_networks_by_name(tmp_path):
    machine = Machine(tmp_path)
    done = machine.sweep(PRETEND_GPUS="2", PRETEND_FAULT="busy")
    assert done.returncode == 1 and machine.results() == [None, None]
    assert "1 GPU is reserved for this process, and torch cannot use it" in done.stdout
    assert "busy or unavailable" in done.stdout


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_on_a_gpu(tmp_path):
    machine = Machine(tmp_path, train={**SWEEP["train"], "epochs": 12})
    command = [sys.executable, "-m", "harness.run", "study.yaml", "--profile", "full"]
    own = environment(**machine.settings(PRETEND_GPUS="4"))
    with subprocess.Popen(command, env=own, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as driver:
        victim = _worker_in_the_middle(machine)
        os.kill(victim, signal.SIGKILL)
        printed, _ = driver.communicate(timeout=500)
    assert driver.returncode == 0, printed
    calls = machine.calls("do_job")
    assert len(calls) == 3 and all(call["count"] == 1 for call in calls)
    assert all(result.environment["device"] == "NVIDIA H200 (pretended)" for result in machine.results())


def _worker_in_the_middle(machine: Machine) -> int:
    """Wait until a network has trained two epochs, and return the process that trains it first."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if any(len(training_progress.read_epochs(each)) > 2 for each in machine.networks()):
            return machine.calls("do_job")[0]["process"]
        time.sleep(0.2)
    raise TimeoutError("no network trained two epochs")


@pytest.mark.slow
def test_a_search_places_its_candidates_on_gpus(tmp_path):
    search = {
        "trials": 3, "validation_images": 100, "sampler": "random",
        "spaces": {"train.learning_rate": {"uniform": [1e-3, 1e-2]}},
    }  # fmt: skip
    machine = Machine(tmp_path, search=search, trials=[{"model": "cnn5", "method": "ibp"}])
    assert_succeeded(machine.sweep(PRETEND_GPUS="4"))
    calls = machine.calls("do_job")
    assert len(calls) >= 3 and all(call["count"] == 1 for call in calls)
