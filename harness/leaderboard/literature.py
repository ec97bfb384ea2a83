"""Numbers from papers, of which results/published.csv has a row each."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from harness.common import names
from harness.common.errors import InputError
from harness.common.terminal import printable
from harness.settings import Radius
from harness.storage.files import LARGEST_TEXT, read_bytes

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ["dataset", "eps", "model", "method", names.STANDARD_ERROR, names.CERTIFIED_ERROR, "source"]
_TEXTS = ("dataset", "eps", "model", "method", "options", "source", "verifier")


def literature_files(sweep_dir: Path) -> list[Path]:
    """Return where numbers from papers may lie: beside the sweep's directory, else in the project."""
    directories = sweep_dir.resolve().parent, Path(__file__).resolve().parents[2] / "results"
    return [directory / "published.csv" for directory in directories]


def read_literature(sweep_dir: Path) -> "pd.DataFrame":
    """Return the rows of the first of `literature_files` that exists; their column `exact` has eps as a Radius.

    Texts are without control characters. Raises InputError for a file that is no table, a missing column, an error that
    is no number or an eps that is no radius.
    """
    import pandas as pd  # imported late: it takes a second

    if not (path := next((file for file in literature_files(sweep_dir) if file.exists()), None)):
        return pd.DataFrame(columns=[*_COLUMNS, "exact"], dtype=object)
    content = BytesIO(read_bytes(path, LARGEST_TEXT))
    try:
        rows = pd.read_csv(content, dtype=dict.fromkeys(_TEXTS, str))
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if missing := [name for name in _COLUMNS if name not in rows]:
        raise InputError(f"{path}: there is no column {', '.join(missing)}")
    for name in rows.columns.intersection(_TEXTS):
        rows[name] = rows[name].map(printable, na_action="ignore")
    rows["source"] = rows["source"].fillna("source unknown")
    if "verifier" in rows:
        rows["source"] += (" (" + rows["verifier"] + " verifier)").fillna("")
    try:
        rows["exact"] = rows["eps"].map(Radius)
        rows = rows.astype({names.STANDARD_ERROR: float, names.CERTIFIED_ERROR: float})
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}") from None
    return rows.set_index("literature " + rows.index.astype(str))
