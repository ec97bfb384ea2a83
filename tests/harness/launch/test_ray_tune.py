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

from harness.config.settings import EvaluationSettings, TrainSettings
from harness.config.trial import TrialConfig
from harness.data import load
from harness.device import NoGpuError
from harness.launch import ray_cluster, ray_tune
from harness.launch.ray_cluster import ResourceError, ray
from harness.launch.ray_tune import run_folders
from harness.storage import files, folder, names

PROBE = "probe.json"


@pytest.fixture(scope="module", autouse=True)
def probed(cluster):
    """The probes below travel to the workers by value."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Ends(logging.Handler):
    """Collects what run_folders tells, and what Ray would say on the terminal."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.rows, self.ends, self.logged = defaultdict(list), defaultdict(list), []

    def emit(self, record):
        self.logged.append(record.getMessage())

    def on_report(self, place, row):
        self.rows[place.name].append(row)

    def on_end(self, place, error):
        self.ends[place.name].append(error)


def call(tmp_path, folders, worker, cpu=1, gpu=0.0, data_dir=None):
    """run_folders over folders of these names."""
    heard = Ends()
    places = [tmp_path / "results" / name for name in folders]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    storage = tmp_path / "results/.ray"
    logging.getLogger("ray").addHandler(heard)
    try:
        run_folders(places, data_dir, cpu, gpu, storage, heard.on_report, heard.on_end, worker=worker)
    finally:
        logging.getLogger("ray").removeHandler(heard)
    assert ray.is_initialized(), "Ray was up before and must stay up"
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted(folders)
    return heard


def look(config):
    """Write what a worker sees; wait until `together` workers have begun, so that they overlap where they can."""
    place = Path(config["directory"])
    together = int(place.name.partition("-")[0])
    seen = {
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "start": time.time(),
    }
    (place / "begun").write_text("")
    deadline = time.time() + 60
    while len(list(place.parent.glob("*/begun"))) < together and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    (place / "probe.json").write_text(json.dumps({**seen, "end": time.time()}))


def probes(tmp_path):
    return [json.loads(path.read_text()) for path in (tmp_path / "results").glob(f"*/{PROBE}")]


def at_once(seen, when):
    return [probe for probe in seen if probe["start"] <= when < probe["end"]]


@pytest.mark.parametrize(("given", "shares"), [({"GPU": 0.5}, [0.5]), ({"GPU": 1.0}, [1.0]), ({"CPU": 1.0}, [0])])
def test_a_worker_keeps_to_its_share_of_the_memory_and_gives_it_back(monkeypatch, tmp_path, given, shares):
    done = []
    context = SimpleNamespace(get_assigned_resources=lambda: given)
    monkeypatch.setattr(ray_tune.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray_tune.torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(ray_tune, "take_share", done.append)
    monkeypatch.setattr(ray_tune, "run_folder", lambda *_, **__: done.append("run"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("emptied"))
    ray_tune.train_folder({"directory": str(tmp_path), "data_dir": None})
    assert done == [*shares, "run", "emptied"]


@pytest.mark.parametrize(
    ("gpu", "together"), [pytest.param(1, 2, id="whole", marks=pytest.mark.slow), pytest.param(0.5, 4, id="halves")]
)
def test_trials_share_the_gpus_as_they_ask(tmp_path, gpu, together):
    """Whole GPUs: two trials at a time. Halves: four, two on each."""
    count = together + 1
    heard = call(tmp_path, [f"{together}-{number}" for number in range(count)], look, gpu=gpu)
    seen = probes(tmp_path)
    assert len(seen) == count
    assert heard.ends == {f"{together}-{number}": [None] for number in range(count)}
    assert {probe["devices"] for probe in seen} == {"0", "1"}, "each sees one device"
    most = 0
    for probe in seen:
        running = at_once(seen, probe["start"])
        most = max(most, len(running))
        for device in ("0", "1"):
            assert sum(other["devices"] == device for other in running) * gpu <= 1
    assert most == together


def fail(config):
    """Count the attempt, then do what the folder is called for."""
    place = Path(config["directory"])
    with open(place / "attempts", "a") as file:
        file.write("x")
    match place.name:
        case "raises":
            raise ValueError("boom\nand a second line")
        case "dies":
            os._exit(7)
        case "recovers" if (place / "attempts").read_text() == "x":
            raise ValueError("only once")
    (place / "probe.json").write_text(json.dumps({"devices": os.environ.get("CUDA_VISIBLE_DEVICES")}))


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """What became of three workers, each with one retry: (directory, what was told)."""
    directory = tmp_path_factory.mktemp("tried")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_tune, "MAX_RETRIES", 1)
        return directory / "results", call(directory, ["raises", "dies", "recovers"], fail)


def test_workers_that_raise_or_die_are_retried_and_then_given_up(tried):
    directory, heard = tried
    attempts = {place.name: len((place / "attempts").read_text()) for place in directory.iterdir()}
    assert attempts == {"raises": 2, "dies": 2, "recovers": 2}
    assert {name: len(told) for name, told in heard.ends.items()} == dict.fromkeys(attempts, 1)
    assert heard.ends["recovers"] == [None]
    assert "2 times" in heard.ends["raises"][0]
    assert "2 times" in heard.ends["dies"][0]


def test_why_a_worker_was_given_up_is_told_in_a_line(tried):
    """One line that names the reason, not Tune's bookkeeping."""
    _, heard = tried
    (raised,), (died,) = heard.ends["raises"], heard.ends["dies"]
    assert "boom" in raised
    assert "died" in died
    assert "\n" not in raised + died


def test_a_trial_that_asks_for_no_gpu_sees_none(tried):
    directory, _ = tried
    seen = [json.loads(path.read_text())["devices"] for path in directory.glob(f"*/{PROBE}")]
    assert len(seen) == 1
    assert set(seen) <= {None, ""}


@pytest.fixture(scope="module")
def real(tmp_path_factory, tiny):
    """What became of real trials on two CPUs each: (directory, what was told, what was printed)."""
    directory = tmp_path_factory.mktemp("real")
    raw = directory / "data/MNIST/raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"not an idx file")
    configs = {
        "well": tiny(),
        "diverges": tiny(train=replace(tiny().train, regularisation=3e38)),
        "unreadable": tiny(dataset="mnist"),
    }
    fingerprint = load("digits").fingerprint
    for name, config in configs.items():
        made = folder.make_trial(config, fingerprint)
        files.write_json(directory / "results" / name / folder.TRIAL, folder.trial_json(made))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        heard = call(directory, list(configs), ray_tune.train_folder, cpu=2, data_dir=str(directory / "data"))
    return directory / "results", heard, printed.getvalue()


@pytest.fixture(scope="module")
def tiny():
    train = TrainSettings(epochs=3, batch_size=64, ramp_start=1, ramp_epochs=2, decay_epochs=())
    evaluation = EvaluationSettings(stages=("ibp",), test_images=50, attack_steps=2, attack_restarts=1)
    named = dict.fromkeys(("sweep", "profile"), "full") | {"dataset": "digits", "model": "cnn5", "method": "ibp"}
    config = TrialConfig(**named, eps="1/16", seed=0, width=0.05, train_images=256, train=train, evaluation=evaluation)
    return lambda **changes: replace(config, **changes)


def test_a_real_trial_reports_its_epochs_and_has_a_thread_a_cpu(real):
    directory, heard, _ = real
    assert heard.ends["well"] == [None]
    assert folder.read_result(directory / "well").environment["threads"] == "2"
    told = [row.get(names.EPOCH, (row.get(names.JUDGED), row.get(names.IMAGES))) for row in heard.rows["well"]]
    assert told == [0, 1, 2, 3, (0, 50), (50, 50)]
    for told, written in zip(heard.rows["well"][:4], folder.read_epochs(directory / "well"), strict=True):
        assert written.items() <= told.items()


@pytest.fixture
def given(monkeypatch, tmp_path, tiny):
    """A function of assigned resources to the threads that a trial would be run with; nothing is trained."""
    made = folder.make_trial(tiny(), "data")
    files.write_json(tmp_path / folder.TRIAL, folder.trial_json(made))
    seen = []
    monkeypatch.setattr(ray_tune, "run_folder", lambda *_args, **_options: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()

    def threads(**resources):
        context = SimpleNamespace(get_assigned_resources=lambda: resources)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        ray_tune.train_folder({"directory": str(tmp_path), "data_dir": None})
        return seen[-1]

    yield threads
    torch.set_num_threads(before)


def test_threads_are_as_many_as_the_cpus_given(given):
    assert [given(CPU=2.0), given(CPU=3.0), given(CPU=1.0), given(CPU=0.5), given()] == [2, 3, 1, 1, 1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_torch_does_not_see_is_an_error(given):
    with pytest.raises(NoGpuError, match="GPU is reserved for this process, and torch cannot use it"):
        given(CPU=1.0, GPU=0.5)


def test_a_trial_that_diverges_is_not_tried_again(real):
    directory, heard, _ = real
    assert heard.ends["diverges"] == [None]
    assert "NonFiniteLossError" in folder.read_failure(directory / "diverges")["error"]


def test_a_trial_whose_data_the_worker_cannot_read_says_so(real):
    """Not tried again either: the worker ends well, and the reason is in failure.json."""
    directory, heard, _ = real
    assert heard.ends["unreadable"] == [None]
    why = folder.read_failure(directory / "unreadable")["error"]
    assert why.startswith("DataError: ")
    assert "MNIST" in why


def test_tune_itself_says_nothing(real, tried):
    """What goes wrong is told by `on_end`; Tune's tracebacks would tear the live table."""
    *_, printed = real
    assert printed == ""
    assert tried[1].logged == real[1].logged == []


def never(config):
    raise AssertionError("nothing may start")


@pytest.mark.parametrize(("cpu", "gpu", "told"), [(5, 0, "5 CPU"), (1, 3, "3 GPU"), (1, 2.5, "2.5 GPU")])
def test_more_than_the_cluster_has_is_told_at_once(tmp_path, monkeypatch, cpu, gpu, told):
    monkeypatch.setattr(ray_tune.Tuner, "fit", lambda self: pytest.fail("it would wait for ever"))
    with pytest.raises(ResourceError, match=told):
        call(tmp_path, ["one"], never, cpu=cpu, gpu=gpu)
    assert ray.is_initialized()
    assert not (tmp_path / "results/.ray").exists()


def test_more_than_any_one_machine_has_is_told_at_once(tmp_path, monkeypatch):
    """Two machines of two CPUs each: four in all, and a trial that asks for three would wait for ever."""
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}}] * 2
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    monkeypatch.setattr(ray_tune.Tuner, "fit", lambda self: pytest.fail("it would wait for ever"))
    with pytest.raises(ResourceError, match="3 CPU"):
        call(tmp_path, ["one"], never, cpu=3)


def test_a_gpu_that_ray_does_not_see_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(ResourceError, match="CUDA_VISIBLE_DEVICES"):
        call(tmp_path, ["one"], never)


class FakeRay:
    """Counts starts and stops; the tests' own Ray is up and must not be touched."""

    def __init__(self, monkeypatch, up):
        self.up, self.calls = up, []
        monkeypatch.setattr(ray, "is_initialized", lambda: self.up)
        monkeypatch.setattr(ray, "init", lambda address, **options: self.calls.append(f"init {address}"))
        monkeypatch.setattr(ray, "shutdown", lambda: self.calls.append("shutdown"))
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
        monkeypatch.setattr(ray_cluster, "_knock", lambda address: None)
        monkeypatch.setattr(ray_tune, "check_storage", lambda needed, uri: None)


@pytest.mark.parametrize(
    ("up", "address", "calls"),
    [
        (False, None, ["init local", "shutdown"]),
        (False, "10.0.0.1:6379", ["init 10.0.0.1:6379", "shutdown"]),
        (True, None, []),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_ray_is_stopped_exactly_where_it_was_started(tmp_path, monkeypatch, up, address, calls, fails):
    fake = FakeRay(monkeypatch, up)

    def fit(self):
        if fails:
            raise KeyboardInterrupt

    monkeypatch.setattr(ray_tune.Tuner, "fit", fit)
    storage = tmp_path / "results/.ray"
    storage.parent.mkdir()
    with pytest.raises(KeyboardInterrupt) if fails else contextlib.nullcontext():
        run_folders([tmp_path / "one"], None, 1, 0, storage, lambda *_: None, lambda *_: None, address, never)
    assert fake.calls == calls
    assert not storage.exists()
