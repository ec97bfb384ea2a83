"""Placement, retries and clean-up under Ray, with two GPUs that only Ray believes in."""

import contextlib
import io
import json
import logging
import os
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.data import load
from harness.device import NoGpuError
from harness.launch import ray_cluster, ray_tune
from harness.launch.ray_cluster import ResourceError, ray
from harness.launch.ray_tune import run_folders
from harness.storage import files, folder, names

PROBE = "probe.json"


@pytest.fixture(scope="module")
def real_ray(cluster):
    """Ray, whose processes get the workers below by value."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Events(logging.Handler):
    """Collects what run_folders reports, and what Ray would print."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.rows, self.ends, self.logged = defaultdict(list), defaultdict(list), []

    def emit(self, record):
        self.logged.append(record.getMessage())

    def on_report(self, trial_dir, row):
        self.rows[trial_dir.name].append(row)

    def on_end(self, trial_dir, error):
        self.ends[trial_dir.name].append(error)


def call(root, folders, worker, cpu=1, gpu=0.0, data_dir=None):
    """run_folders over folders of these names."""
    events = Events()
    trial_dirs = [root / "results" / name for name in folders]
    for trial_dir in trial_dirs:
        trial_dir.mkdir(parents=True, exist_ok=True)
    storage = root / "results/.ray"
    logging.getLogger("ray").addHandler(events)
    try:
        run_folders(trial_dirs, data_dir, cpu, gpu, storage, events.on_report, events.on_end, worker=worker)
    finally:
        logging.getLogger("ray").removeHandler(events)
    assert ray.is_initialized(), "Ray was up before and must stay up"
    assert sorted(path.name for path in (root / "results").iterdir()) == sorted(folders)
    return events


def look(config):
    """Write which GPU a worker sees; wait until `together` workers have begun, so that they overlap where they can."""
    trial_dir = Path(config["directory"])
    together = int(trial_dir.name.partition("-")[0])
    start = time.time()
    (trial_dir / "begun").write_text("")
    while len(list(trial_dir.parent.glob("*/begun"))) < together and time.time() < start + 60:
        time.sleep(0.05)
    time.sleep(0.3)
    seen = {"device": os.environ.get("CUDA_VISIBLE_DEVICES"), "start": start, "end": time.time()}
    (trial_dir / PROBE).write_text(json.dumps(seen))


@pytest.mark.slow
@pytest.mark.parametrize(("gpu", "together"), [(1, 2), (0.5, 4)], ids=["whole", "halves"])
def test_trials_share_the_gpus_as_they_ask(real_ray, tmp_path, gpu, together):
    """Whole GPUs: two trials at a time. Halves: four, two on each."""
    folders = [f"{together}-{number}" for number in range(together + 1)]
    events = call(tmp_path, folders, look, gpu=gpu)
    probes = [json.loads(path.read_text()) for path in (tmp_path / "results").glob(f"*/{PROBE}")]
    assert len(probes) == len(folders)
    assert events.ends == {name: [None] for name in folders}
    assert {probe["device"] for probe in probes} == {"0", "1"}, "each sees one device"
    running = [[p for p in probes if p["start"] <= probe["start"] < p["end"]] for probe in probes]
    assert max(map(len, running)) == together
    for group in running:
        assert all(sum(probe["device"] == device for probe in group) * gpu <= 1 for device in "01")


def work(config):
    """Do what the folder is called for; train where it is called for a trial."""
    trial_dir = Path(config["directory"])
    if (trial_dir / folder.TRIAL).exists():
        ray_tune.train_folder(config)
        return
    with open(trial_dir / "attempts", "a") as file:
        file.write("x")
    if trial_dir.name == "raises":
        raise ValueError("boom\nand a second line")
    if (trial_dir / "attempts").read_text() == "x":
        os._exit(7)
    (trial_dir / PROBE).write_text(json.dumps(os.environ.get("CUDA_VISIBLE_DEVICES")))


@pytest.fixture(scope="module")
def done(real_ray, tmp_path_factory, tiny_trial):
    """Two workers that fail, each with one retry, and a real trial, on two CPUs each: (results, events, printed)."""
    root = tmp_path_factory.mktemp("done")
    trial = folder.make_trial(tiny_trial(width=0.05), load("digits").fingerprint)
    files.write_json(root / "results/trained" / folder.TRIAL, folder.trial_json(trial))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(ray_tune, "MAX_RETRIES", 1)
        events = call(root, ["raises", "recovers", "trained"], work, cpu=2)
    return root / "results", events, printed.getvalue()


@pytest.mark.slow
def test_workers_that_raise_or_die_are_retried_and_then_given_up_with_the_reason_in_a_line(done):
    results, events, _ = done
    attempts = {path.parent.name: len(path.read_text()) for path in results.glob("*/attempts")}
    assert attempts == {"raises": 2, "recovers": 2}
    (reason,) = events.ends["raises"]
    assert "2 times" in reason and "boom" in reason and "\n" not in reason
    assert events.ends["recovers"] == [None]


@pytest.mark.slow
def test_a_trial_that_asks_for_no_gpu_sees_none(done):
    assert json.loads((done[0] / "recovers" / PROBE).read_text()) in (None, "")


@pytest.mark.slow
def test_a_real_trial_reports_its_epochs_and_has_a_thread_a_cpu(done):
    results, events, _ = done
    assert events.ends["trained"] == [None]
    assert folder.read_result(results / "trained").environment["threads"] == "2"
    rows = events.rows["trained"]
    reported = [row.get(names.EPOCH, (row.get(names.JUDGED), row.get(names.IMAGES))) for row in rows]
    assert reported == [0, 1, 2, 3, (0, 60), (40, 60), (60, 60)]
    for row, written in zip(rows[:4], folder.read_epochs(results / "trained"), strict=True):
        assert written.items() <= row.items()


@pytest.mark.slow
def test_tune_prints_nothing(done):
    """Its tracebacks would tear the live table."""
    _, events, printed = done
    assert printed == "" and events.logged == []


@pytest.fixture
def train_with(monkeypatch, tmp_path):
    """A function of assigned resources to what a worker then does; nothing is trained."""
    before = torch.get_num_threads()

    def run(**resources):
        steps = []
        context = SimpleNamespace(get_assigned_resources=lambda: resources)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(ray_tune, "run_folder", lambda *_, **__: steps.append(torch.get_num_threads()))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: steps.append("memory freed"))
        ray_tune.train_folder({"directory": str(tmp_path), "data_dir": None})
        return steps

    yield run
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["diverges", "unreadable"])
def test_what_would_fail_again_is_not_tried_again_and_its_folder_has_the_reason(
    monkeypatch, tmp_path, tiny_trial, name
):
    """The worker ends without an error, which Tune would try again."""
    config = tiny_trial(width=0.05)
    if name == "diverges":
        config = replace(config, train=replace(config.train, regularisation=3e38))
    trial = folder.make_trial(config, load("digits").fingerprint if name == "diverges" else "of other data")
    trial_dir = tmp_path / "tiny/trials" / trial.key
    folder.claim(trial_dir, trial)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_assigned_resources=dict))
    monkeypatch.setattr(ray_tune.tune, "report", lambda row: None)
    ray_tune.train_folder({"directory": str(trial_dir), "data_dir": None})
    error = {"diverges": "NonFiniteLossError", "unreadable": "SettingError: data: found"}[name]
    assert error in folder.read_failure(trial_dir)["error"]


@pytest.mark.parametrize(("cpus", "threads"), [(2.0, 2), (3.0, 3), (0.5, 1), (0, 1)])
def test_a_worker_has_a_thread_a_cpu_and_frees_its_memory(train_with, cpus, threads):
    assert train_with(CPU=cpus) == [threads, "memory freed"]


def test_a_worker_keeps_to_its_share_of_a_gpu(train_with, monkeypatch):
    shares = []
    monkeypatch.setattr(ray_tune, "take_share", shares.append)
    train_with(GPU=0.5)
    train_with()
    assert shares == [0.5, 0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_torch_does_not_see_is_an_error(train_with):
    with pytest.raises(NoGpuError, match="GPU is reserved for this process, and torch cannot use it"):
        train_with(CPU=1.0, GPU=0.5)


def never(config):
    raise AssertionError("nothing may start")


@pytest.fixture
def two_machines(monkeypatch):
    """A Ray of two machines with two CPUs and a GPU each, which starts nothing."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}}] * 2)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    monkeypatch.setattr(ray_tune.Tuner, "fit", lambda self: pytest.fail("it would wait for ever"))


@pytest.mark.parametrize(("cpu", "gpu", "message"), [(5, 0, "5 CPU"), (3, 0, "3 CPU"), (1, 2.5, "2.5 GPU")])
def test_more_than_any_machine_has_is_refused(tmp_path, two_machines, cpu, gpu, message):
    with pytest.raises(ResourceError, match=message):
        call(tmp_path, ["one"], never, cpu=cpu, gpu=gpu)
    assert not (tmp_path / "results/.ray").exists()


def test_a_gpu_that_ray_does_not_see_is_an_error(tmp_path, two_machines, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(ResourceError, match="CUDA_VISIBLE_DEVICES"):
        call(tmp_path, ["one"], never)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
@pytest.mark.parametrize(("is_up", "address"), [(False, None), (False, "10.0.0.1:6379"), (True, None)])
def test_ray_is_stopped_exactly_where_it_was_started(tmp_path, monkeypatch, is_up, address, error):
    calls = []
    monkeypatch.setattr(ray, "is_initialized", lambda: is_up)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(ray, "init", lambda address, **_: calls.append(f"init {address}"))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray_cluster.socket, "create_connection", lambda *_: io.BytesIO())
    monkeypatch.setattr(ray_tune, "check_storage", lambda needed, uri: None)

    def fit(self):
        if error:
            raise error

    monkeypatch.setattr(ray_tune.Tuner, "fit", fit)
    storage = tmp_path / "results/.ray"
    storage.parent.mkdir()
    with pytest.raises(error) if error else contextlib.nullcontext():
        run_folders([tmp_path / "one"], None, 1, 0, storage, lambda *_: None, lambda *_: None, address, never)
    assert calls == ([] if is_up else [f"init {address or 'local'}", "shutdown"])
    assert not storage.exists()
