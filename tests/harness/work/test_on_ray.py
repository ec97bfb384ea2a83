"""Which GPU a job gets, retries and clean-up under Ray, with two GPUs that only Ray believes in."""

import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.common import names
from harness.common.errors import SettingError
from harness.data import load
from harness.machine.environment import source_digest
from harness.storage import files, folder, training_progress
from harness.storage.records import make_record
from harness.work import on_ray, ray_connection
from harness.work.jobs import EvaluateRange, Job, Train, do_job, make_jobs
from harness.work.machines import RayOptions
from harness.work.queue import Listener, Queue
from harness.work.ray_connection import ray

PROBE = "probe.json"


@pytest.fixture(scope="module")
def real_ray(cluster):
    """Ray, whose processes get the functions below by value."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Events(logging.Handler, Listener):
    """Collects what is reported, how jobs end, and what Ray would print."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.rows, self.ends, self.logged, self.starts = defaultdict(list), defaultdict(list), [], []

    def emit(self, record):
        self.logged.append(record.getMessage())

    def on_start(self, job):
        self.starts.append(job.label)

    def on_report(self, job, row):
        self.rows[job.label].append(row)

    def on_end(self, job, error):
        self.ends[job.label].append(error)


def jobs_at(path, tiny_evaluation=None):
    """The jobs of the network that training.json of a folder names."""
    record = folder.read_training(path / folder.TRAINING)
    return make_jobs(path, record, [(folder.main_evaluation(path), 60)], "cpu", path.name)


def call(root, jobs, do, **options):
    """Run jobs under Ray, or one of each name. do: called with a job, or a name's folder, and a report."""
    options = RayOptions(**{"cpu": 1, "gpu": 0.0, "at_once": 4, **options})
    events = Events()
    logging.getLogger("ray").addHandler(events)
    try:
        on_ray.run_on_ray(Queue(jobs), do, events, options, root / "results")
    finally:
        logging.getLogger("ray").removeHandler(events)
    return events


@pytest.fixture
def named(tmp_path, tiny_training):
    """A function of names to jobs of these names, each with a folder, which train."""

    def make(names):
        jobs = []
        for name in names:
            (path := tmp_path / "results" / name).mkdir(parents=True, exist_ok=True)
            jobs.append(Job(path, make_record(tiny_training(), "data"), (Train(),), name))
        return jobs

    return make


def look(job, report):
    """Write which GPU a worker sees; wait until four workers have begun, so that they overlap where they can."""
    start, item = time.time(), job.network_dir
    (item / "begun").write_text("")
    while len(list(item.parent.glob("*/begun"))) < 4 and time.time() < start + 60:
        time.sleep(0.05)
    time.sleep(0.3)
    seen = {"device": os.environ.get("CUDA_VISIBLE_DEVICES"), "start": start, "end": time.time()}
    (item / PROBE).write_text(json.dumps(seen))


@pytest.mark.slow
def test_four_jobs_share_two_gpus_by_halves(real_ray, tmp_path, named, monkeypatch):
    monkeypatch.setattr(on_ray, "limit_gpu_memory", print)  # torch sees no GPU
    items = [f"4-{number}" for number in range(5)]
    events = call(tmp_path, named(items), look, gpu=0.5)
    probes = [json.loads(path.read_text()) for path in (tmp_path / "results").glob(f"*/{PROBE}")]
    assert events.ends == {name: [None] for name in items}
    assert {probe["device"] for probe in probes} == {"0", "1"}, "each sees one device"
    running = [[p for p in probes if p["start"] <= probe["start"] < p["end"]] for probe in probes]
    assert max(map(len, running)) == 4
    for group in running:
        assert all(sum(probe["device"] == device for probe in group) <= 2 for device in "01")


def shared_jobs(tmp_path, count, tiny_training, tiny_evaluation):
    """The jobs of networks, each with an evaluation of six ranges."""
    evaluation = tiny_evaluation(batch_size=10)
    return [
        job
        for number in range(count)
        for job in make_jobs(
            tmp_path / f"results/{number}", make_record(tiny_training(seed=number), "data"), [(evaluation, 60)],
            "cpu", str(number),
        )
    ]  # fmt: skip


def test_ranges_of_a_trained_network_come_before_networks_that_wait(tmp_path, tiny_training, tiny_evaluation):
    """Tune gets one job more than fit, so that no worker waits; and more once more machines join."""
    places, jobs = 2, on_ray._Jobs(Queue(shared_jobs(tmp_path, 6, tiny_training, tiny_evaluation)))
    next_job = on_ray._NextJob(jobs, lambda: places)

    def take(*trial_ids):
        given = [next_job.suggest(trial_id) for trial_id in trial_ids]
        return [config[on_ray.JOB]["label"] for config in given if config is not None]

    assert take("a", "b", "c", "d") == ["0", "1", "2"]
    jobs.queue.end(next(job for job in jobs.queue.running if job.label == "0"), None)
    next_job.on_trial_complete("a")
    assert take("e", "f") == ["0, images 0 to 9"]
    places = 4
    assert take("g", "h", "i") == ["0, images 10 to 19", "0, images 20 to 29"]


@pytest.mark.slow
def test_a_network_is_evaluated_before_the_last_ones_are_trained(real_ray, tmp_path, tiny_training, tiny_evaluation):
    """Four workers, six networks, each with six ranges and their join."""
    jobs = shared_jobs(tmp_path, 6, tiny_training, tiny_evaluation)
    events = call(tmp_path, jobs, lambda job, report: time.sleep(0.2), at_once=None)
    first_range = next(number for number, name in enumerate(events.starts) if "images" in name)
    assert len(events.starts) == 48 and first_range < 8
    for number in range(6):
        own = [name for name in events.starts if name.split(",")[0] == str(number)]
        assert own[0] == own[-1] == str(number) and all("images" in name for name in own[1:-1]), "in order"


def work(job, report):
    """Do what the job is called for."""
    item = job.network_dir
    if item.name == "trained":
        do_job(job, report, None, source_digest())
        return
    with open(item / "attempts", "a") as file:
        file.write("x")
    if item.name == "raises":
        raise ValueError("boom\nand a second line")
    if item.name == "refuses":
        files.parse_json(item / "absent", dict)
    if (item / "attempts").read_text() == "x":
        os._exit(7)
    (item / PROBE).write_text(json.dumps(os.environ.get("CUDA_VISIBLE_DEVICES")))


def begin(network_dir, training, evaluation, fingerprint=None):
    record = make_record(training, fingerprint or load("digits").fingerprint)
    folder.begin_network(network_dir, record, "full", [evaluation])
    return network_dir


@pytest.mark.slow
def test_jobs_that_fail_are_retried_and_a_network_reports_its_epochs_and_images(
    real_ray, tmp_path, named, tiny_training, tiny_evaluation, monkeypatch, capsys
):
    """On two CPUs each, with one retry. What Tune prints would tear the bars."""
    trained = begin(tmp_path / "results/trained", tiny_training(), tiny_evaluation(batch_size=20))
    monkeypatch.setattr(on_ray, "WORKER_RETRIES", 1)
    events = call(tmp_path, [*named(["raises", "refuses", "recovers"]), *jobs_at(trained)], work, cpu=2)
    attempts = {path.parent.name: len(path.read_text()) for path in (tmp_path / "results").glob("*/attempts")}
    assert attempts == {"raises": 2, "refuses": 1, "recovers": 2}
    assert events.ends["raises"] == ["its worker failed 2 times: ValueError: boom and a second line"]
    assert "DamagedFileError: " in events.ends["refuses"][0]
    assert events.ends["recovers"] == events.ends["trained"] == [None]
    assert json.loads((tmp_path / "results/recovers" / PROBE).read_text()) in (None, ""), (
        "who asks for no GPU sees none"
    )
    assert folder.read_trained(trained).environment["threads"] == "2"
    rows = events.rows["trained"]
    reported = [row.get(names.EPOCH, (row.get(names.EVALUATED), row.get(names.IMAGES))) for row in rows]
    assert reported == [0, 1, 2, 3, (20, 60), (40, 60), (60, 60), (None, None)]
    for row, written in zip(rows[:4], training_progress.read_epochs(trained), strict=True):
        assert written.items() <= row.items()
    assert events.starts.count("raises") == 2 and events.starts.count("trained") == 1
    printed = capsys.readouterr().out.splitlines()
    assert all("(raylet)" in line for line in printed), "what no setting of Ray silences"
    assert events.logged == []


@pytest.mark.slow
def test_ray_s_own_analysis_shows_each_network_by_its_config_with_its_epochs(
    real_ray, tmp_path, tiny_training, tiny_evaluation
):
    begin(tmp_path / "results/trained", tiny_training(seed=3), tiny_evaluation())
    call(tmp_path, jobs_at(tmp_path / "results/trained"), work)
    analysis = on_ray.tune.ExperimentAnalysis(str(tmp_path / "results/ray"))
    (shown,) = analysis.dataframe().to_dict("records")
    expected = {"model": "cnn5", "method": "ibp", "seed": 3, "train/eps": "1/32", "label": "trained"}
    assert {name: shown[f"config/job/{name}"] for name in expected} == expected
    (rows,) = analysis.trial_dataframes.values()
    losses = [row[names.TRAIN_LOSS] for row in training_progress.read_epochs(tmp_path / "results/trained")[1:]]
    assert [loss for loss in rows[names.TRAIN_LOSS] if loss == loss] == losses


@pytest.mark.slow
def test_an_error_of_a_callback_ends_everything_as_itself(real_ray, tmp_path, named):
    class Full(Listener):
        def on_end(self, job, error):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        on_ray.run_on_ray(Queue(named(["one"])), lambda job, report: None, Full(), RayOptions(1, 0, 1), tmp_path)


@pytest.fixture
def do_in_worker(monkeypatch, tmp_path, tiny_training, tiny_evaluation):
    """A function that does the first job of a folder as a worker does, and returns what that reports."""
    before, begun = torch.get_num_threads(), tmp_path / "tiny/networks/0"
    begin(begun, tiny_training(), tiny_evaluation())
    monkeypatch.chdir(tmp_path)

    def do(work, directory=tmp_path, part=None, **resources):
        reports = []
        context = SimpleNamespace(get_assigned_resources=lambda: resources)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(on_ray.tune, "report", reports.append)
        job = jobs_at(begun)[0]
        job = job if part is None else replace(job, work=(EvaluateRange(job.evaluation, 0, part),))
        on_ray.make_trainable(work, directory)({on_ray.JOB: on_ray.config_of(job, 0)})
        return reports

    yield do
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["diverges", "unreadable"])
def test_what_would_fail_again_is_not_tried_again_and_its_folder_has_the_reason(
    do_in_worker, tmp_path, tiny_training, tiny_evaluation, name
):
    """The worker ends without an error, which Tune would try again."""
    training, fingerprint = tiny_training(), "of other data"
    if name == "diverges":
        training, fingerprint = tiny_training(train={"regularisation": 3e38}), None
    shutil.rmtree(tmp_path / "tiny")
    network_dir = begin(tmp_path / "tiny/networks/0", training, tiny_evaluation(), fingerprint)
    *_, last = do_in_worker(partial(do_job, data_dir=None, code=source_digest()))
    error = {"diverges": "NonFiniteLossError", "unreadable": "SettingError: data: found"}[name]
    assert error in last[on_ray.ERROR] and error in folder.read_failure(network_dir).error


def test_a_worker_has_a_thread_a_cpu_and_its_share_of_a_gpu_and_frees_its_memory(do_in_worker, monkeypatch):
    steps = []
    monkeypatch.setattr(on_ray, "limit_gpu_memory", steps.append)
    monkeypatch.setattr(on_ray, "free_memory", lambda: steps.append("memory freed"))
    for reserved in ({"CPU": 3.0, "GPU": 0.5}, {"CPU": 0.5}):
        do_in_worker(lambda *_: steps.append(torch.get_num_threads()), **reserved)
    assert steps == [0.5, 3, "memory freed", 0, 1, "memory freed"]
    do_in_worker(lambda *_: steps.append("a range"), part=5, CPU=1.0)
    assert steps[-1] == "a range", "collecting garbage would take as long as a small one"


def test_a_worker_is_where_the_command_is_or_stays_on_a_machine_without_that_directory(do_in_worker, tmp_path):
    (tmp_path / "there").mkdir()
    seen = []
    for name in ("there", "missing"):
        do_in_worker(lambda *_: seen.append(Path.cwd()), tmp_path / name)
    assert seen == [tmp_path / "there"] * 2


@pytest.fixture
def one_machine(monkeypatch):
    """A Ray of one machine with a CPU, which starts nothing."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}])
    monkeypatch.setattr(on_ray.Tuner, "fit", lambda self: pytest.fail("it would wait for ever"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cpu": 2}, "cpu: found 2, allowed: at most 1"), ({"gpu": 0.5}, "gpu: found 0.5, allowed: at most 0")],
)
def test_more_than_any_machine_of_ray_has_is_refused(tmp_path, named, one_machine, options, message):
    with pytest.raises(SettingError, match=message):
        call(tmp_path, named(["one"]), print, **options)


@pytest.mark.parametrize(
    ("is_up", "address", "error"),
    [(False, None, KeyboardInterrupt), (False, "10.0.0.1:6379", None), (True, None, None)],
)
def test_ray_is_stopped_exactly_where_it_was_started(tmp_path, named, one_machine, monkeypatch, is_up, address, error):
    calls = []
    monkeypatch.setattr(ray, "is_initialized", lambda: is_up)

    def init(address, **_):
        calls.append(f"init {address}")
        return SimpleNamespace(dashboard_url="")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray_connection.socket, "create_connection", lambda *_: io.BytesIO())

    def fit(self):
        if error:
            raise error

    monkeypatch.setattr(on_ray.Tuner, "fit", fit)
    with pytest.raises(error) if error else contextlib.nullcontext():
        call(tmp_path, named(["one"]), print, address=address)
    ray_connection._connection.close()  # as at the end of the process
    assert calls == ([] if is_up else [f"init {address or 'local'}", "shutdown"])


def test_an_error_of_ray_itself_is_its_death(tmp_path, named, one_machine, monkeypatch):
    def fit(self):
        raise ray.exceptions.RaySystemError("WrongClusterID: GCS has restarted")

    monkeypatch.setattr(on_ray.Tuner, "fit", fit)
    with pytest.raises(
        ConnectionError, match=r"Ray has died: RaySystemError.*WrongClusterID.*; the same command continues"
    ):
        call(tmp_path, named(["one"]), print, address="10.0.0.1:6379")


BECOMES_STUCK = """
import os, signal, sys, time
from pathlib import Path
from harness.config.training import Training
from harness.storage.records import make_record
from harness.work import on_ray
from harness.work.jobs import Job, Train
from harness.work.machines import RayOptions
from harness.work.queue import Listener, Queue

class Killing(Listener):
    def on_report(self, job, row):
        pid = int(os.popen(f"pgrep -P {os.getpid()} -x {sys.argv[1]}").read())
        os.kill(pid, signal.SIGKILL)
        print("killed", flush=True)

def do(job, report):
    report({"epoch": 1})
    time.sleep(600)

training = Training(dataset="digits", model="cnn5", method="ibp", seed=0, train={"eps": "1/8"})
jobs = [Job(Path("one").absolute(), make_record(training, "data"), (Train(),), "one")]
on_ray.run_on_ray(Queue(jobs), do, Killing(), RayOptions(1, 0, 1), Path.cwd())
"""


@pytest.mark.slow
@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_a_command_whose_ray_dies_ends_with_status_1_within_three_minutes(tmp_path, server):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    environment.pop("RAY_AUTH_TOKEN", None)
    command = [sys.executable, "-c", BECOMES_STUCK, server]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 1 and done.stdout.startswith("killed\n"), done.stdout
    assert ("Ray has died" if server == "raylet" else "GCS may have been killed") in done.stderr
