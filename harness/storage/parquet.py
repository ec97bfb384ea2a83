"""Parquet tables, read."""

from pathlib import Path

import pandas as pd

from harness.storage.files import DamagedFileError


def read_table(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """A Parquet file, or these columns of it. Raises DamagedFileError."""
    try:
        return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from error
