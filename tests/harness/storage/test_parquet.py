"""Parquet tables: read as they were written, and smaller than by default."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from harness.common.errors import InputError
from harness.storage.files import DamagedFileError
from harness.storage.parquet import read_table, unpack_table, write_table

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


def test_a_table_that_would_be_too_large_is_refused(tmp_path):
    """Files of 10 kB: a text that is stored once for all rows, and zeros."""
    path = tmp_path / "table"
    texts = pa.table({"stage": pa.DictionaryArray.from_arrays(np.zeros(ROWS, np.int32), ["0" * 2**20])})
    parquet.write_table(texts, path, store_schema=False, compression="zstd", dictionary_pagesize_limit=2**30)
    with pytest.raises(DamagedFileError, match="bytes of stage, unpacked: found 4194304000, allowed: at most 1,073"):
        read_table(path)
    assert path.stat().st_size < 10**4
    parquet.write_table(pa.table({"margin": np.zeros(2**20)}), path, compression="zstd")
    with pytest.raises(InputError, match="bytes, unpacked: found 8388608, allowed: at most 1,000,000"):
        unpack_table(path.read_bytes(), largest=10**6)
    assert path.stat().st_size < 10**4


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.string()), pa.binary(64), pa.large_binary(), pa.binary(), pa.string_view()], ids=str
)
def test_a_column_of_a_type_whose_size_is_not_checked_is_refused(tmp_path, kind):
    """A file of kilobytes can unpack to hundreds of megabytes of such values."""
    value = ["0" * 64] if pa.types.is_list(kind) else "0" * 64
    parquet.write_table(pa.table({"stage": pa.array([value] * ROWS, kind)}), path := tmp_path / "table")
    with pytest.raises(InputError, match=r"the type of stage: found .*, allowed: numbers, truth values or texts"):
        unpack_table(path.read_bytes())


def test_texts_that_are_stored_as_a_dictionary_of_arrow_are_refused(tmp_path):
    texts = pa.DictionaryArray.from_arrays(np.zeros(ROWS, np.int32), ["0" * 2**20])
    parquet.write_table(pa.table({"stage": texts}), path := tmp_path / "table")
    with pytest.raises(InputError, match="the type of stage: found 'dictionary<"):
        unpack_table(path.read_bytes())
