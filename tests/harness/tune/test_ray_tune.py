"""Which GPU an item gets, retries and clean-up under Ray, with two GPUs that only Ray believes in."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
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
from harness.tune import ray_connection, ray_tune
from harness.tune.items import LEFT, Item, Listener, Queue, Worker
from harness.tune.machines import RayOptions
from harness.tune.ray_connection import ray

PROBE = "probe.json"


@pytest.fixture(scope="module")
def real_ray(cluster):
    """Ray, whose processes get the functions below by value."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Events(logging.Handler, Listener):
    """Collects what is reported, how items end, and what Ray would print."""

    def __init__(self, queue):
        super().__init__(logging.WARNING)
        self.queue = queue
        self.rows, self.ends, self.logged, self.starts = defaultdict(list), defaultdict(list), [], []
        self.results = {}

    def emit(self, record):
        self.logged.append(record.getMessage())

    def on_start(self, item):
        self.starts.append(item.directory.name)

    def on_report(self, item, row):
        self.rows[item.directory.name].append(row)

    def on_end(self, item, error, result):
        self.results[item.directory.name] = result
        self.ends[item.directory.name].append(error)


def item_of(path):
    """An item with the settings of its training.json, if it has one."""
    label = f"label of {path.name}"
    if not (path / folder.TRAINING).exists():
        return Item(path, label, {})
    training = folder.read_training(path / folder.TRAINING).config
    return Item.of(path, training, [folder.main_evaluation(path)], label=label)


def call(root, items, work, **options):
    """Run items of these names under Ray. work: called with a folder and a report."""

    def do(item, report):
        return work(item.directory, report) or {"last": 1.0}

    options = RayOptions(**{"cpu": 1, "gpu": 0.0, "at_once": 4, **options})
    paths = [root / "results" / name for name in items]
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)
    events = Events(queue := Queue(map(item_of, paths)))
    logging.getLogger("ray").addHandler(events)
    try:
        ray_tune.run_on_ray(queue, do, events, options, root / "results")
    finally:
        logging.getLogger("ray").removeHandler(events)
    return events


def look(item, report):
    """Write which GPU a worker sees; wait until four workers have begun, so that they overlap where they can."""
    start = time.time()
    (item / "begun").write_text("")
    while len(list(item.parent.glob("*/begun"))) < 4 and time.time() < start + 60:
        time.sleep(0.05)
    time.sleep(0.3)
    seen = {"device": os.environ.get("CUDA_VISIBLE_DEVICES"), "start": start, "end": time.time()}
    (item / PROBE).write_text(json.dumps(seen))


@pytest.mark.slow
def test_four_items_share_two_gpus_by_halves(real_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_tune, "limit_gpu_memory", print)  # torch sees no GPU
    items = [f"4-{number}" for number in range(5)]
    events = call(tmp_path, items, look, gpu=0.5)
    probes = [json.loads(path.read_text()) for path in (tmp_path / "results").glob(f"*/{PROBE}")]
    assert events.ends == {name: [None] for name in items}
    assert {probe["device"] for probe in probes} == {"0", "1"}, "each sees one device"
    running = [[p for p in probes if p["start"] <= probe["start"] < p["end"]] for probe in probes]
    assert max(map(len, running)) == 4
    for group in running:
        assert all(sum(probe["device"] == device for probe in group) <= 2 for device in "01")


def test_ranges_of_a_trained_network_come_before_networks_that_wait(tmp_path):
    """Tune gets one item more than fit, so that no worker waits; and more once more machines join."""
    places = 2
    names = [f"network {number}" for number in range(6)]
    queue = Queue(Item(tmp_path / name, name, {}, ("{}",)) for name in names)
    next_item = ray_tune._NextItem(queue, lambda: places)

    def take(*trial_ids):
        given = [next_item.suggest(trial_id) for trial_id in trial_ids]
        return [ray_tune.item_of(config).label for config in given if config is not None]

    assert take("a", "b", "c", "d") == names[:3]
    queue.end(next(item for item in queue.running if item.label == names[0]))
    queue.add([Item(tmp_path / names[0], "range", {}, ("{}",), range(5))])
    next_item.on_trial_complete("a")
    assert take("e", "f") == ["range"]
    places = 4
    assert take("g", "h", "i") == names[3:5]


@pytest.mark.slow
def test_a_network_is_evaluated_before_the_last_ones_are_trained(real_ray, tmp_path, monkeypatch):
    """Four workers, ten networks, each of which leaves a range."""
    monkeypatch.setattr(Events, "on_end", leave_range)
    items = [f"network-{number}" for number in range(10)]
    events = call(tmp_path, items, lambda item, report: time.sleep(0.5), at_once=None)
    first_range = next(number for number, name in enumerate(events.starts) if name in events.starts[:number])
    assert len(events.starts) == 20 and first_range < 8


def leave_range(self, item, error, result):
    """Queue a range of the network that has ended."""
    assert error is None
    if item.images is None:
        self.queue.add([replace(item, images=range(5))])


def work(item, report):
    """Do what the item is called for."""
    if item.name == "trained":
        return Worker(None, source_digest(), shares=True)(item_of(item), report)
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
def test_items_that_fail_are_retried_and_a_network_reports_its_epochs_and_the_ranges_it_leaves(
    real_ray, tmp_path, tiny_training, tiny_evaluation, monkeypatch, capsys
):
    """On two CPUs each, with one retry. What Tune prints would tear the bars."""
    trained = begin(tmp_path / "results/trained", tiny_training(), tiny_evaluation(batch_size=12))
    monkeypatch.setattr(ray_tune, "WORKER_RETRIES", 1)
    events = call(tmp_path, ["raises", "refuses", "recovers", "trained"], work, cpu=2)
    attempts = {path.parent.name: len(path.read_text()) for path in (tmp_path / "results").glob("*/attempts")}
    assert attempts == {"raises": 2, "refuses": 1, "recovers": 2}
    assert events.ends["raises"] == ["its worker failed 2 times: ValueError: boom and a second line"]
    assert "DamagedFileError: " in events.ends["refuses"][0]
    assert events.ends["recovers"] == events.ends["trained"] == [None]
    assert json.loads((tmp_path / "results/recovers" / PROBE).read_text()) in (None, ""), (
        "who asks for no GPU sees none"
    )
    assert folder.read_trained(trained).environment["threads"] == "2"
    assert events.results["trained"][LEFT] == [[0, 12], [12, 24], [24, 36], [36, 48], [48, 60]]
    rows = events.rows["trained"]
    reported = [row.get(names.EPOCH, (row.get(names.EVALUATED), row.get(names.IMAGES))) for row in rows]
    assert reported == [(None, None), 0, 1, 2, 3, (None, None)]
    for row, written in zip(rows[1:5], training_progress.read_epochs(trained), strict=True):
        assert written.items() <= row.items()
    assert rows[0][names.ACTIVITY] == "reads its data"
    assert events.starts.count("raises") == 2 and events.starts.count("trained") == 1
    printed = capsys.readouterr().out.splitlines()
    assert all("(raylet)" in line for line in printed), "what no setting of Ray silences"
    assert events.logged == []


@pytest.mark.slow
def test_ray_s_own_analysis_shows_each_network_by_its_config_with_its_epochs(
    real_ray, tmp_path, tiny_training, tiny_evaluation
):
    begin(tmp_path / "results/trained", tiny_training(seed=3), tiny_evaluation())
    call(tmp_path, ["trained"], work)
    analysis = ray_tune.tune.ExperimentAnalysis(str(tmp_path / "results/ray"))
    (shown,) = analysis.dataframe().to_dict("records")
    expected = {"model": "cnn5", "method": "ibp", "seed": 3, "train/eps": "1/32", "label": "label of trained"}
    assert {name: shown[f"config/trial/{name}"] for name in expected} == expected
    (rows,) = analysis.trial_dataframes.values()
    losses = [row[names.TRAIN_LOSS] for row in training_progress.read_epochs(tmp_path / "results/trained")[1:]]
    assert [loss for loss in rows[names.TRAIN_LOSS] if loss == loss] == losses


@pytest.mark.slow
def test_an_error_of_a_callback_ends_everything_as_itself(real_ray, tmp_path):
    class Full(Listener):
        def on_end(self, item, error, result):
            raise OSError(28, "No space left on device")

    items = [Item(tmp_path / "2-1", "2-1", {})]
    with pytest.raises(OSError, match="No space left"):
        ray_tune.run_on_ray(Queue(items), lambda item, report: {}, Full(), RayOptions(1, 0, 1), tmp_path)


@pytest.fixture
def do_in_worker(monkeypatch, tmp_path):
    """A function that does work as a worker with these resources does, and returns what that reports."""
    before = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)

    def do(work, directory=tmp_path, images=None, **resources):
        reports = []
        context = SimpleNamespace(get_assigned_resources=lambda: resources)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(ray_tune.tune, "report", reports.append)
        item = replace(item_of(tmp_path / "tiny/networks/0"), images=images)
        config = {ray_tune.TRIAL: ray_tune.settings_of(item)}
        ray_tune.make_trainable(work, directory)(config)
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
    network_dir = begin(tmp_path / "tiny/networks/0", training, tiny_evaluation(), fingerprint)
    *_, last = do_in_worker(Worker(None, source_digest()))
    error = {"diverges": "NonFiniteLossError", "unreadable": "SettingError: data: found"}[name]
    assert error in last[ray_tune.ERROR] and error in folder.read_failure(network_dir).error


def test_a_worker_has_a_thread_a_cpu_and_its_share_of_a_gpu_and_frees_its_memory(do_in_worker, monkeypatch):
    steps = []
    monkeypatch.setattr(ray_tune, "limit_gpu_memory", steps.append)
    monkeypatch.setattr(ray_tune, "free_memory", lambda: steps.append("memory freed"))
    for reserved in ({"CPU": 3.0, "GPU": 0.5}, {"CPU": 0.5}):
        do_in_worker(lambda *_: steps.append(torch.get_num_threads()), **reserved)
    assert steps == [0.5, 3, "memory freed", 0, 1, "memory freed"]
    do_in_worker(lambda *_: steps.append("a range"), images=range(5), CPU=1.0)
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
    monkeypatch.setattr(ray_tune.Tuner, "fit", lambda self: pytest.fail("it would wait for ever"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cpu": 2}, "cpu: found 2, allowed: at most 1"), ({"gpu": 0.5}, "gpu: found 0.5, allowed: at most 0")],
)
def test_more_than_any_machine_of_ray_has_is_refused(tmp_path, one_machine, options, message):
    with pytest.raises(SettingError, match=message):
        call(tmp_path, ["one"], print, **options)


@pytest.mark.parametrize(
    ("is_up", "address", "error"),
    [(False, None, KeyboardInterrupt), (False, "10.0.0.1:6379", None), (True, None, None)],
)
def test_ray_is_stopped_exactly_where_it_was_started(tmp_path, one_machine, monkeypatch, is_up, address, error):
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

    monkeypatch.setattr(ray_tune.Tuner, "fit", fit)
    with pytest.raises(error) if error else contextlib.nullcontext():
        call(tmp_path, ["one"], print, address=address)
    assert calls == ([] if is_up else [f"init {address or 'local'}", "shutdown"])


def test_an_error_of_ray_itself_is_its_death(tmp_path, one_machine, monkeypatch):
    def fit(self):
        raise ray.exceptions.RaySystemError("WrongClusterID: GCS has restarted")

    monkeypatch.setattr(ray_tune.Tuner, "fit", fit)
    with pytest.raises(
        ConnectionError, match=r"Ray has died: RaySystemError.*WrongClusterID.*; the same command continues"
    ):
        call(tmp_path, ["one"], print, address="10.0.0.1:6379")


BECOMES_STUCK = """
import os, signal, sys, time
from pathlib import Path
from harness.tune import ray_tune
from harness.tune.items import LEFT, Item, Listener, Queue, Worker
from harness.tune.machines import RayOptions

class Killing(Listener):
    killed = 0
    def on_report(self, item, row):
        pid = int(os.popen(f"pgrep -P {os.getpid()} -x {sys.argv[1]}").read())
        os.kill(pid, signal.SIGKILL)
        print("killed", flush=True)

def work(item, report):
    report({"epoch": 1})
    time.sleep(600)

ray_tune.run_on_ray(Queue([Item(Path("one").absolute(), "one", {})]), work, Killing(), RayOptions(1, 0, 1), Path.cwd())
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
