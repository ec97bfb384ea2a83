"""Links in a results directory of someone else: no file outside of it is read, written or emptied."""

import os

import pytest

from harness.command_line import main
from harness.common.errors import InputError
from harness.storage import files, folder
from harness.storage.lock import LOCK, lock_directory
from harness.storage.records import make_record

NAMES = (LOCK, ".result.json.1.tmp", "networks", "search", "figures", "leaderboard.md", "instances")
NAMES += ("networks/0/log.txt", "networks/0/evaluations/0/log.txt")


@pytest.fixture
def victim(tmp_path):
    """A directory outside of the results, which must stay as it is."""
    directory = tmp_path / "home"
    directory.mkdir()
    (directory / "keys").write_text("ssh-rsa AAAA")
    yield directory
    assert [(path.name, path.read_text()) for path in directory.iterdir()] == [("keys", "ssh-rsa AAAA")]


COMMANDS = {name: ["study"] for name in ("tables", "recheck", "publish")} | {
    "benchmark": ["--trained", "study/networks/0"],
    "verify": ["list.csv", "--results-dir", "study"],
    "run": ["sweep.yaml", "--results-dir", "."],
}
"""The arguments of each command that reads or writes results."""


@pytest.fixture
def planted(tmp_path, victim, tiny_training, monkeypatch):
    """A function that makes a results directory with a link of a name in it, and what commands need beside it."""
    monkeypatch.chdir(tmp_path)

    def plant(name, command):
        record = make_record(tiny_training(), "data")
        path = tmp_path / "study" / name
        path.parent.mkdir(parents=True)
        path.symlink_to(victim if "." not in path.name else victim / "keys")
        if name != "networks" and command != "verify":
            folder.begin_network(tmp_path / "study/networks/0", record)
        sweep = "name: study\ndataset: digits\neps: 1/16\nseeds: [0]\ntrials: [{model: cnn5, method: ibp}]\n"
        (tmp_path / "sweep.yaml").write_text(sweep + "train: {epochs: 3, ramp_epochs: 1, decay_epochs: []}\n")
        (tmp_path / "net.onnx").touch()
        (tmp_path / "list.csv").write_text("net.onnx,net.onnx,1\n")

    return plant


@pytest.mark.parametrize(
    ("command", "name"), [*(("tables", name) for name in NAMES), *((command, LOCK) for command in COMMANDS)]
)
def test_every_command_refuses_links_that_lead_out_of_the_results(planted, command, name, capsys):
    planted(name, command)
    assert main(command, COMMANDS[command]) == 2
    message = capsys.readouterr().err
    assert f"study/{name} leads to" in message and "copy what it leads to, or remove it" in message


def test_links_within_a_directory_and_to_the_directory_itself_are_taken(tmp_path):
    (tmp_path / "big/a").mkdir(parents=True)
    (tmp_path / "big/b").symlink_to("a")
    (tmp_path / "results").symlink_to("big")
    files.refuse_links(tmp_path / "results")
    with lock_directory(tmp_path / "results"):
        files.write_text(tmp_path / "results/b/c", "text")
    assert (tmp_path / "big/a/c").read_text() == "text"


def test_a_pipe_is_no_lock(tmp_path):
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(InputError, match=r"\.lock cannot be the lock"), lock_directory(tmp_path):
        pass
