"""Parquet tables: read as they were written, and smaller than by default."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from harness.common.errors import InputError
from harness.storage.files import DamagedFileError
from harness.storage.parquet import page_sizes, read_table, unpack_table, write_table

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


def packed(table, **options):
    """The content of a Parquet file: its columns, and its footer."""
    content = pa.BufferOutputStream()
    options = {"compression": "zstd", "store_schema": False, "write_statistics": False} | options
    parquet.write_table(table, content, dictionary_pagesize_limit=2**30, **options)
    content = content.getvalue().to_pybytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return content[:start], content[start:]


@pytest.mark.parametrize("name", ["margin", "stage"])
def test_a_footer_that_says_less_than_the_pages_take_is_refused(tmp_path, name):
    """Zeros, or one text, of 16 MB in 12 kB, with the footer of a table that is as large as it is packed."""
    rng = np.random.default_rng(0)
    tables = {
        "margin": (np.zeros(2**21), rng.normal(size=ROWS)),
        "stage": (["0" * 2**24], ["".join(map(chr, rng.integers(32, 127, size=ROWS)))]),
    }
    large, small = (pa.table({name: values}) for values in tables[name])
    columns, _ = packed(large, use_dictionary=name == "stage", data_page_size=2**30, max_rows_per_page=10**9)
    honest, footer = packed(small, use_dictionary=name == "stage")
    assert len(columns) < len(honest) < 10**5 < unpack_table(packed(large)[0] + packed(large)[1]).nbytes
    unpack_table(honest + footer, largest=10**6)
    left = 2 * (len(honest) - len(columns) - 9)
    empty_page = b"\x15\0\x15\0\x15" + bytes([left & 127 | 128, left >> 7 & 127 | 128, left >> 14]) + b"\0"
    with pytest.raises(InputError, match=r"bytes, unpacked: found 1677\d{4}, allowed: at most 1,000,000"):
        unpack_table((columns + empty_page).ljust(len(honest), b"\0") + footer, largest=10**6)


def test_numbers_of_values_that_cancel_are_refused():
    """A column of as many values as another one has less than none: pyarrow would make room for those of the first."""
    columns, footer = packed(pa.table({"a": np.zeros(ROWS), "b": np.zeros(ROWS)}))
    honest, below_none = bytes([2 * ROWS & 127 | 128, 2 * ROWS >> 7]), bytes([2 * ROWS - 1 & 127 | 128, 2 * ROWS >> 7])
    parts = footer.split(honest)
    assert len(parts) == 7  # rows, both columns with their sizes, the row group
    lying = columns + honest.join(parts[:4]) + below_none + honest.join(parts[4:])
    counts = parquet.ParquetFile(pa.BufferReader(lying)).metadata.row_group(0)
    assert [counts.column(number).num_values for number in (0, 1)] == [ROWS, -ROWS]
    with pytest.raises(InputError, match=f"bytes, unpacked: found {16 * ROWS}, allowed: at most {15 * ROWS:,}"):
        unpack_table(lying, largest=15 * ROWS)


@pytest.mark.parametrize("options", [{"data_page_version": "2.0"}, {"use_dictionary": False}, {"compression": "none"}])
def test_the_pages_of_honest_files_have_the_footer_s_size(options):
    values = np.random.default_rng(0).integers(50, size=100 * ROWS)
    table = pa.table({"label": values, "stage": [f"stage {value}" for value in values]})
    content = b"".join(packed(table, data_page_size=2**16, write_statistics=True, **options))
    group = parquet.ParquetFile(pa.BufferReader(content)).metadata.row_group(0)
    for column in map(group.column, range(2)):
        pages = list(page_sizes(content, column))
        assert len(pages) > 2 and 0.99 < sum(pages) / column.total_uncompressed_size < 1  # without the headers
    assert unpack_table(content).equals(table)


@pytest.mark.parametrize(
    "header", [b"\x15\x00\x15\x00\x00", b"\x15\x00\x15\x02\x15\x01\x00", b"\x19", b"\xff" * 20, b"\x1c" * 9999]
)
def test_a_damaged_header_of_a_page_is_refused(tmp_path, header):
    """Without a size, with a size below 0, with a list, with an integer of 100 bits, and nested too deep."""
    columns, footer = packed(pa.table({"margin": np.random.default_rng(0).normal(size=ROWS)}), use_dictionary=False)
    (tmp_path / "table").write_bytes(columns[:4] + header + columns[4 + len(header) :] + footer)
    with pytest.raises(DamagedFileError, match=r"table cannot be read: (ValueError|RecursionError)"):
        read_table(tmp_path / "table")


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
