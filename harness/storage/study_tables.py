"""Published results as two Parquet files, as git has them: trials and verdicts, without weights, proofs and epochs.

    trials.parquet    a row for each finished trial and certification: `folder` below that of the results, and the
                      JSON texts of its files: `trial` (trial.json or certification.json), `result`, `chosen` (or None)
    verdicts.parquet  a row for each test image of each of them: `folder` and VERDICT_COLUMNS

If the trial folders exist, they are read instead.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common import names
from harness.storage import certification, folder, parquet
from harness.storage.files import DamagedFileError, load_json, parse_file, read_text
from harness.storage.parquet import read_table, unpack_table, write_table
from harness.storage.state import TrialState, read_state_or_raise

TRIALS, VERDICTS = "trials.parquet", "verdicts.parquet"
VERDICT_COLUMNS = [names.INDEX, names.LABEL, names.PREDICTION, names.VERDICT, names.STAGE]
FOLDER = "folder"
_TEXTS = ("trial", "result", "chosen")


def write_study_tables(study: Path, to: Path) -> None:
    """Write both tables of the finished trials and certifications below `study` to the directory `to`."""
    trial_dirs = folder.trial_folders(study)
    certifications = [path for trial_dir in trial_dirs for path in certification.folders(trial_dir)]
    rows: list[dict[str, str | None]] = []
    verdicts = []
    for path in (*trial_dirs, *certifications):
        if read_state_or_raise(path).result is None:
            continue
        name = path.relative_to(study).as_posix()
        files = certification.record_path(path), path / folder.RESULT, path / folder.CHOSEN
        rows.append({FOLDER: name, **dict(zip(_TEXTS, map(_compact, files), strict=True))})
        verdicts.append(parquet.read_verdicts(path).assign(**{FOLDER: name}))
    write_table(to / TRIALS, pd.DataFrame(rows))
    table = pd.concat(verdicts, ignore_index=True)
    write_table(to / VERDICTS, table[[name for name in (FOLDER, *VERDICT_COLUMNS) if name in table]])


def _compact(path: Path) -> str | None:
    return json.dumps(json.loads(read_text(path))) if path.exists() else None


def read_stored_trials(study: Path) -> dict[Path, TrialState]:
    """Return the rows of trials.parquet by folder, none if there is no such file or the folders are there.

    Raises DamagedFileError.
    """
    path = study / TRIALS
    if not path.exists() or folder.trial_folders(study):
        return {}
    return parse_file(path, lambda content: _parse(study, unpack_table(content).to_pandas()))


def _parse(study: Path, rows: pd.DataFrame) -> dict[Path, TrialState]:
    states = {}
    for row in rows.to_dict("records"):
        path = study / row[FOLDER]
        trial = folder.parse_trial(_json(row["trial"]), has_own_key=not certification.is_certification(path))
        chosen = folder.parse_chosen(_json(row["chosen"])) if isinstance(row["chosen"], str) else None
        states[path] = TrialState(trial, folder.parse_result(_json(row["result"])), chosen=chosen)
    return states


def _json(text: str) -> Any:
    return load_json(text.encode())


def read_stored_verdicts(path: Path, columns: list[str]) -> pd.DataFrame:
    """Return columns of the verdicts of a trial or certification, from its folder or its study's table.

    columns: of VERDICT_COLUMNS. Raises DamagedFileError.
    """
    study = next((parent for parent in path.parents if (parent / VERDICTS).is_file()), None)
    if study is None or (path / folder.VERDICTS).exists():
        return parquet.read_verdicts(path, columns)
    name = path.relative_to(study).as_posix()
    rows = _verdicts_by_folder(study / VERDICTS, (FOLDER, *columns), (study / VERDICTS).stat().st_mtime_ns).get(name)
    if rows is None:
        raise DamagedFileError(f"{study / VERDICTS} has no verdicts of {name}")
    return rows[columns].reset_index(drop=True)


@lru_cache(maxsize=1)  # a table for all trials of a study, which are read one after the other
def _verdicts_by_folder(path: Path, columns: tuple[str, ...], changed_at: int) -> dict[Any, pd.DataFrame]:
    table = read_table(path, list(columns))
    if problems := parquet.check_columns(table[list(columns[1:])]):
        raise DamagedFileError(f"{path}: {'; '.join(problems)}")
    return dict(iter(table.groupby(FOLDER, observed=True)))
