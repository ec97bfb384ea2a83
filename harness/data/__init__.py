"""Data sets: found or downloaded, checked, decoded once to uint8, fingerprinted.

Which there are, one record each: baselines/datasets.py, since networks are built for them.
"""

from harness.data.layouts import DataError
from harness.data.loading import Data, Split, data_directory, load

__all__ = ["Data", "DataError", "Split", "data_directory", "load"]
