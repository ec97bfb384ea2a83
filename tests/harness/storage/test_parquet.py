"""Parquet tables: read as they were written, smaller than by default, never half there."""

import numpy as np
import pandas as pd
import pytest

from harness.storage.files import DamagedFileError
from harness.storage.parquet import read_table, write_table

ROWS = 4000


@pytest.fixture
def table():
    random = np.random.default_rng(0)
    margins = random.normal(size=ROWS)
    return pd.DataFrame(
        {
            "index": np.arange(ROWS),
            "shuffled": random.permutation(ROWS) - ROWS // 2,
            "label": random.integers(10, size=ROWS),
            "margin": np.where(margins > 2, np.nan, margins),
            "width": np.where(margins > 2, np.inf, random.random(ROWS).astype(np.float32)).astype(np.float32),
            "verdict": np.where(margins > 0, "certified", "falsified"),
        }
    )


def test_a_table_is_read_as_it_was_written(table, tmp_path):
    write_table(tmp_path / "there/table.parquet", table)
    pd.testing.assert_frame_equal(read_table(tmp_path / "there/table.parquet"), table, check_exact=True)
    assert list(read_table(tmp_path / "there/table.parquet", ["width"])) == ["width"]
    assert [path.name for path in tmp_path.rglob("*.parquet*")] == ["table.parquet"], "no temporary file is left"


def test_it_is_smaller_than_pandas_would_make_it(table, tmp_path):
    write_table(tmp_path / "ours", table)
    table.to_parquet(tmp_path / "default")
    assert (tmp_path / "ours").stat().st_size < 0.7 * (tmp_path / "default").stat().st_size


@pytest.mark.parametrize("empty", [pd.DataFrame({"shard": []}), pd.DataFrame({"name": ["a"]})])
def test_tables_without_rows_or_floats_are_written(empty, tmp_path):
    write_table(tmp_path / "table", empty)
    pd.testing.assert_frame_equal(read_table(tmp_path / "table"), empty)


def test_what_is_no_table_is_refused_by_name(tmp_path):
    (tmp_path / "table").write_text("junk")
    with pytest.raises(DamagedFileError, match="table cannot be read"):
        read_table(tmp_path / "table")
