"""No reader of a results directory waits at a pipe, or reads a file that is absurdly large."""

import json
import os
import socket

import pytest
import torch

from harness.leaderboard.literature import read_literature
from harness.storage import folder, lock, parquet, training_progress
from harness.storage.files import DamagedFileError, read_text
from harness.storage.lock import LOCK
from harness.training.checkpoint import restore
from harness.tune.run_search import JOURNAL, load_studies

READERS = {
    LOCK: lock.holder,
    folder.CHECKPOINT: lambda path: restore(path, {}, torch.device("cpu")),
    JOURNAL: load_studies,
    "leaderboard.md": lambda path: read_text(path / "leaderboard.md"),
    "published.csv": lambda path: read_literature(path / "sweep"),
    folder.EPOCHS: training_progress.read_epochs,
    folder.VERDICTS: lambda path: parquet.read_verdicts(path, []),
}
"""What reads the file of this name in a directory."""


@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_at_a_pipe(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DamagedFileError, match=f"{name} cannot be "):
        READERS[name](tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_huge_files_are_refused_before_they_are_read(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 8 * 2**40)
    with pytest.raises(DamagedFileError, match=f"{name} cannot be read: .*allowed: at most "):
        READERS[name](tmp_path)


def test_a_process_number_that_no_process_has_is_of_nobody(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"host": socket.gethostname(), "process": 10**30, "since": 0.0}))
    assert lock.holder(tmp_path) is None
