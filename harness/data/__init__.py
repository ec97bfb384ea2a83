"""Data sets: find or download them, check them, decode them once to uint8, compute their fingerprint.

The list of data sets is in baselines/datasets.py, since networks are built for them.
"""

from harness.data.loading import Data, Split, fingerprint, load

__all__ = ["Data", "Split", "fingerprint", "load"]
