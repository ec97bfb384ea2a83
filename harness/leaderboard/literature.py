"""Numbers from papers, of which results/literature.csv has a row each; the best of them as sentences."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common import names
from harness.common.errors import InputError
from harness.common.radius import Radius
from harness.common.terminal import printable
from harness.storage.files import LARGEST_TEXT, read_bytes

_COLUMNS = ["dataset", "eps", "model", "method", names.STANDARD_ERROR, names.CERTIFIED_ERROR, "source"]
_PERCENT = {names.STANDARD_ERROR: float, names.CERTIFIED_ERROR: float, names.UNDECIDED_ERROR: float}
COMPLETE, IBP, LINEAR = "complete", "IBP", "linear bounds"
ALLOWED = {
    "relu": ("yes", "no"),
    "guarantee": ("deterministic", "probabilistic"),
    "extra_data": ("no", "generated", "unlabelled"),
    "verifier": (COMPLETE, IBP, LINEAR, "Lipschitz", "sampling"),
    "run": ("mean", "best"),
    "tuned_on": ("test", "validation"),
}
"""Columns with few values; a cell may also be empty, where the paper does not say it."""
NOT_STATED = "not stated"
_TEXTS = ("dataset", "eps", "model", "method", "options", "source", "url", *ALLOWED)


def read_literature(sweep_dir: Path) -> pd.DataFrame:
    """Return the rows of literature.csv beside a sweep's directory, else of the project's; none if neither exists.

    Each column of ALLOWED is among them. `exact` has eps as a Radius; `source` is the `publication` with what kind of
    number it is. The attack error is what remains of the certified error if every undecided image is certified. Texts
    are without control characters. Raises InputError for a file that is no table, a missing column, and a value that is
    not allowed.
    """
    directories = sweep_dir.resolve().parent, Path(__file__).resolve().parents[2] / "results"
    files = (directory / "literature.csv" for directory in directories)
    if not (path := next((file for file in files if file.exists()), None)):
        return pd.DataFrame(columns=[*_COLUMNS, *ALLOWED, "exact", "publication"], dtype=object)
    content = BytesIO(read_bytes(path, LARGEST_TEXT))
    try:
        rows = pd.read_csv(content, dtype=dict.fromkeys(_TEXTS, str))
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if missing := [name for name in _COLUMNS if name not in rows]:
        raise InputError(f"{path}: there is no column {', '.join(missing)}")
    for name in rows.columns.intersection(_TEXTS):
        rows[name] = rows[name].map(printable, na_action="ignore")
    rows = rows.reindex(columns=[*rows, *(name for name in (*ALLOWED, names.UNDECIDED_ERROR) if name not in rows)])
    try:
        rows["exact"] = rows["eps"].map(Radius)
        rows = rows.astype(_PERCENT)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}") from None
    rows["publication"] = rows["source"].fillna("source unknown")
    records = rows.to_dict("records")
    for number, row in enumerate(records, 2):
        if problem := _problem(row):
            raise InputError(f"{path}: line {number}: {problem}")
    rows["source"] = pd.Series([row["publication"] + _kind_of_number(row) for row in records], dtype=object)
    rows[names.ATTACK_ERROR] = (rows[names.CERTIFIED_ERROR] - rows[names.UNDECIDED_ERROR]).round(9)
    return rows.set_index("literature " + rows.index.astype(str))


def _problem(row: dict[Any, Any]) -> str:
    """Return which value of a row is not allowed; empty if all are."""
    for name, allowed in ALLOWED.items():
        if pd.notna(row[name]) and row[name] not in allowed:
            return f"{name}: found {row[name]!r}, allowed: {', '.join(allowed)}, or nothing"
    for name in _PERCENT:
        if pd.notna(row[name]) and not 0 <= row[name] <= 100:
            return f"{name}: found {row[name]}, allowed: from 0 to 100"
    standard, certified, undecided = (row[name] for name in _PERCENT)
    if standard > certified or undecided > certified:
        return f"standard_error or undecided is above certified_error, {certified}"
    url = row.get("url", "")
    if isinstance(url, str) and url and not url.startswith("https://"):
        return f"url: found {url!r}, allowed: https://..., or nothing"
    return ""


def _kind_of_number(row: dict[Any, Any]) -> str:
    """Return what distinguishes a number from that of a ReLU network with a deterministic guarantee, in parentheses."""
    notes = [f"{row['verifier']} verifier"] if isinstance(row["verifier"], str) else []
    notes += ["no ReLU network"] if row["relu"] == "no" else []
    notes += ["probabilistic"] if row["guarantee"] == "probabilistic" else []
    notes += [f"{row['extra_data']} data"] if row["extra_data"] in ALLOWED["extra_data"][1:] else []
    notes += [f"tuned on the {row['tuned_on']} split"] if isinstance(row["tuned_on"], str) else []
    return f" ({', '.join(notes)})" if notes else ""


def tuning_split(value: Any) -> str:
    """Return the images that a row's settings were chosen on, as tables say it. value: a cell of `tuned_on`."""
    return f"{value} split" if isinstance(value, str) and value else NOT_STATED


def best_sentences(rows: pd.DataFrame, kind: str, is_full_size: bool) -> list[str]:
    """Return the best deterministic rows of papers, and which own rows compare with them: at most three sentences.

    One of them names the best by what rows were tuned on, if papers say it of some.

    rows: of `read_literature`, of one data set and eps.
    kind: COMPLETE, IBP or LINEAR, what verifies the own rows.
    is_full_size: whether the own rows are of full size.
    """
    rows = rows[(rows["guarantee"] != "probabilistic") & rows[names.CERTIFIED_ERROR].notna()]
    rows = rows.sort_values([names.CERTIFIED_ERROR, names.STANDARD_ERROR], kind="stable")
    if rows.empty:
        return []
    best = rows.head(1)
    relu = rows[rows["relu"] == "yes"].head(1)
    if relu.empty or relu.index.equals(best.index):
        which = "The best number from papers" if relu.empty else "The best number from papers, of a ReLU network"
        comparable = _comparable(["it"], [best["verifier"].iloc[0]], kind, is_full_size)
        return [f"{which}: {_described(best)}.", *_best_by_split(rows), comparable]
    sentence = f"The best number of a ReLU network from papers: {_described(relu)}; of any network: {_described(best)}."
    verifiers = [relu["verifier"].iloc[0], best["verifier"].iloc[0]]
    return [sentence, *_best_by_split(rows), _comparable(["the first", "the second"], verifiers, kind, is_full_size)]


def _best_by_split(rows: pd.DataFrame) -> list[str]:
    """Return a sentence on the best ReLU network for each kind of images it was tuned on; none if no paper says it.

    rows: best first.
    """
    rows = rows[rows["relu"] == "yes"]
    if not rows["tuned_on"].notna().any():
        return []
    splits = rows["tuned_on"].map(tuning_split)
    parts = [f"{split}: {_described(rows[splits == split].head(1))}" for split in splits.unique()]
    return [f"The best ReLU network from papers by the images it was tuned on; {'; '.join(parts)}."]


def _described(row: pd.DataFrame) -> str:
    record = row.iloc[0].dropna()
    label = " ".join(record[name] for name in ("model", "method", "source") if name in record)
    proved = f"{record[names.CERTIFIED_ERROR]:.2f} %"
    if record.get(names.UNDECIDED_ERROR):
        proved += f" ({record[names.ATTACK_ERROR]:.2f} % if all undecided images were certified)"
    return f"{proved}, {label}"


def _comparable(which: list[str], verifiers: list[str | float], kind: str, is_full_size: bool) -> str:
    """Return which own rows can be compared with these rows of papers."""
    every = which[0] if len(which) == 1 else "either"
    if not is_full_size:
        return f"No row here can be compared with {every}: these are not of the full profile and size."
    comparable = [name for name, verifier in zip(which, verifiers, strict=True) if verifier == kind]
    if not comparable:
        return f"No row here can be compared with {every}: what verifies the rows here is of another kind ({kind})."
    whom = "both" if len(comparable) > 1 else f"{comparable[0]} only" if len(which) > 1 else comparable[0]
    return f"Each row here can be compared with {whom}: same data set, eps, size and kind of verifier ({kind})."
