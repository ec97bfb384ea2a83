"""Parquet tables: read as they were written, and smaller than by default."""

import numpy as np
import pandas as pd
import pytest

from harness.storage.files import DamagedFileError
from harness.storage.parquet import read_table, write_table

ROWS = 4000


def test_a_table_is_read_as_it_was_written_and_smaller_than_by_default(tmp_path):
    random = np.random.default_rng(0)
    margins = random.normal(size=ROWS)
    columns = {
        "index": np.arange(ROWS),
        "shuffled": random.permutation(ROWS) - ROWS // 2,
        "label": random.integers(10, size=ROWS),
        "margin": np.where(margins > 2, np.nan, margins),
        "width": np.where(margins > 2, np.inf, random.random(ROWS).astype(np.float32)).astype(np.float32),
        "verdict": np.where(margins > 0, "certified", "falsified"),
    }
    table, path = pd.DataFrame(columns), tmp_path / "new/table.parquet"
    write_table(path, table)
    pd.testing.assert_frame_equal(read_table(path), table, check_exact=True)
    assert list(read_table(path, ["width"])) == ["width"]
    table.to_parquet(tmp_path / "default")
    assert path.stat().st_size < 0.7 * (tmp_path / "default").stat().st_size


def test_a_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "table").write_text("junk")
    with pytest.raises(DamagedFileError, match="table cannot be read"):
        read_table(tmp_path / "table")


@pytest.mark.parametrize("at", [4, 10, -6])
def test_a_damaged_table_is_named(tmp_path, at):
    write_table(path := tmp_path / "table", pd.DataFrame({"margin": np.random.default_rng(0).normal(size=ROWS)}))
    content = bytearray(path.read_bytes())
    content[at : at + 5] = b"\xff" * 5
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="table cannot be read"):
        read_table(path)
