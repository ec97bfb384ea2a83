"""A training that was killed anywhere goes on to the very same end."""

import shutil

import pytest
import torch
from one_network import train_and_evaluate
from safetensors.torch import load_file
from steppers import Killed, kill, train_network

from harness.common import names
from harness.data import load
from harness.storage import folder, training_progress
from harness.training import checkpoint
from harness.training.loop import train


def images_of_320():
    """Images and labels that a tiny network is trained on."""
    data = load("digits").train
    return data.images[:320], data.labels[:320]


TIMES = (names.TRAIN_EPOCH_SECONDS, names.TRAIN_EXAMPLES_PER_SECOND)


def without_times(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.parametrize(
    ("model", "method"), [("cerdeq", "mtl-ibp"), pytest.param("cnn5", "sabr", marks=pytest.mark.slow)]
)
def test_a_training_that_was_killed_goes_on_to_the_very_same_weights(tmp_path, tiny_training, model, method):
    """Random starts of attacks and averages included."""
    options = {"iterations": 4, "backward_iterations": 4} if model == "cerdeq" else {}
    small = {"width": 0.05, "train_images": 128, "options": options, "method_options": {"attack_steps": 2}}
    config, broken, rows = (
        tiny_training(model, method=method, train={"ema_decay": 0.9}, **small),
        tmp_path / "broken",
        [],
    )
    with pytest.raises(Killed):
        train_network(config, broken, kill, save_seconds=0)
    half_written = broken / f".{folder.EPOCHS}.1.tmp"
    half_written.touch()
    torch.manual_seed(99)
    train_network(config, broken, rows.append)
    assert not half_written.exists()
    assert [row[names.EPOCH] for row in rows if names.EPOCH in row] == [3]
    train_network(config, tmp_path / "undisturbed")
    resumed, undisturbed = (load_file(path / folder.WEIGHTS) for path in (broken, tmp_path / "undisturbed"))
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert [row[names.EPOCH] for row in training_progress.read_epochs(broken)] == [0, 1, 2, 3]


def test_the_result_names_the_devices_of_training_if_evaluation_has_another_one(
    tmp_path, tiny_training, tiny_evaluation, whole_network
):
    evaluation = tiny_evaluation(test_images=10)
    whole = folder.evaluation_dir(whole_network("cnn5")[0], tiny_evaluation())
    assert "trained_on" not in folder.read_result(whole).environment
    with pytest.raises(Killed):
        train_network(tiny_training("cnn5"), tmp_path, kill, save_seconds=0)
    here = (tmp_path / folder.TRAINED_ON).read_text()
    (tmp_path / folder.TRAINED_ON).write_text("NVIDIA H200\n\nNVIDIA H200\n")
    train_and_evaluate(tiny_training("cnn5"), [evaluation], tmp_path)
    environment = folder.read_result(folder.evaluation_dir(tmp_path, evaluation)).environment
    assert environment["trained_on"] == f"NVIDIA H200, {here.strip()}"
    assert here.strip() == environment["device"]


# Where a process dies: at the report of an epoch, or in a function after that of epoch 1; and the first epoch after it.
DEATHS = {0: 1, 1: 2, "write_epoch": 2, "checkpoint.save": 2, 2: 2}


@pytest.mark.parametrize("where", DEATHS)
def test_a_training_that_was_killed_anywhere_has_every_row_once(
    where, tiny_training, whole_network, tmp_path, monkeypatch
):
    """Checkpoint and row of an epoch are two files. At epoch 2 the only checkpoint is that of epoch 1."""
    if where == 2:
        due = checkpoint.Clock, "is_save_due", lambda clock: len(training_progress.read_epochs(tmp_path)) == 2
        monkeypatch.setattr(*due)

    def die(*_args, **_kwargs):
        raise Killed

    def report(row):
        if row.get(names.EPOCH) == where:
            die()
        if row.get(names.EPOCH) == 1 and isinstance(where, str):
            monkeypatch.setattr(f"harness.training.loop.{where}", die)

    config, again = tiny_training(), []
    with pytest.raises(Killed):
        train_network(config, tmp_path, report, save_seconds=0)
    written = training_progress.read_epochs(tmp_path)
    monkeypatch.undo()
    result = train_network(config, tmp_path, again.append)
    first = DEATHS[where]
    assert next(row[names.EPOCH] for row in again if names.EPOCH in row) == first
    rows, (unbroken, undisturbed) = training_progress.read_epochs(tmp_path), whole_network("cnn5")
    assert rows[:first] == written[:first] and without_times(rows) == without_times(undisturbed)
    assert len((tmp_path / folder.EPOCHS).read_text().splitlines()) == len(rows)
    assert result.metrics[names.TRAIN_SECONDS] == pytest.approx(sum(row[names.TRAIN_EPOCH_SECONDS] for row in rows[1:]))
    undisturbed, again = (load_file(each / folder.WEIGHTS) for each in (unbroken, tmp_path))
    assert all(torch.equal(undisturbed[name], again[name]) for name in undisturbed)


def test_checkpoints_are_as_far_apart_as_the_clock_says_and_the_last_is_saved(tiny_training, tmp_path, monkeypatch):
    saved, now, save = [], [0.0], checkpoint.save
    monkeypatch.setattr("harness.training.checkpoint.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        checkpoint, "save", lambda network_dir, epoch, parts: (saved.append(epoch), save(network_dir, epoch, parts))
    )

    def pass_time(row):
        now[0] += 12

    train(tiny_training(width=0.05, train={"epochs": 7}), *images_of_320(), tmp_path, pass_time)
    assert saved == [3, 6, 7], "after 36 s, and 36 s after those"


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def half_of_another(path):
    """The network is loaded before the optimiser turns out to be none."""
    state = torch.load(path, weights_only=True)
    torch.save({**state, "optimiser": {"state": {}}}, path)


SPOILT = [flip_a_bit, half_of_another]  # others: tests/harness/test_malformed_files.py


@pytest.fixture(scope="module")
def killed_network(tiny_training, tmp_path_factory):
    """The folder of a training that was killed after its second epoch; no test may change it."""
    network_dir = tmp_path_factory.mktemp("killed")

    with pytest.raises(Killed):
        train_network(tiny_training(), network_dir, kill, save_seconds=0)
    return network_dir


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_training_starts_again_if_its_checkpoint_is_damaged(
    killed_network, whole_network, tiny_training, tmp_path, spoil
):
    """Which is logged; the end is the very same."""
    network_dir = shutil.copytree(killed_network, tmp_path / "network")
    spoil(network_dir / folder.CHECKPOINT)
    rows = []
    train_network(tiny_training(), network_dir, rows.append)
    assert [row[names.EPOCH] for row in rows if names.EPOCH in row] == [1, 2, 3]
    assert f"{network_dir / folder.CHECKPOINT} cannot be read" in (network_dir / folder.LOG).read_text()
    undisturbed, again = (load_file(each / folder.WEIGHTS) for each in (whole_network("cnn5")[0], network_dir))
    assert all(torch.equal(undisturbed[name], again[name]) for name in undisturbed)
