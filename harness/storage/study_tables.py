"""Published results as two Parquet files, as git has them, without weights, proofs and epochs.

    evaluations.parquet  a row for each finished evaluation: `folder` below that of the results, and the JSON texts of
                         its files and its network's: `training`, `study`, `trained`, `chosen` (or None), `evaluation`,
                         `result`
    verdicts.parquet     a row for each image of each of them: `folder` and VERDICT_COLUMNS

If the networks' folders exist, they are read instead.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common import names
from harness.storage import folder, parquet
from harness.storage.files import DamagedFileError, load_json, parse_file, read_text
from harness.storage.parquet import parse_table, read_table, write_table
from harness.storage.records import parse_choices, parse_evaluation, parse_result, parse_study, parse_training
from harness.storage.state import EvaluationState, count_wrongly_right, evaluation_dirs, read_state_or_raise

EVALUATIONS, VERDICTS = "evaluations.parquet", "verdicts.parquet"
VERDICT_COLUMNS = [names.INDEX, names.LABEL, names.PREDICTION, names.VERDICT, names.STAGE]
FOLDER = "folder"
_OF_NETWORK = {"training": folder.TRAINING, "study": folder.STUDY, "trained": folder.TRAINED, "chosen": folder.CHOSEN}
_OF_EVALUATION = {"evaluation": folder.EVALUATION, "result": folder.RESULT}


def write_study_tables(study: Path, to: Path) -> None:
    """Write both tables of the finished evaluations below `study` to the directory `to`."""
    rows: list[dict[str, str | None]] = []
    verdicts = []
    for path in evaluation_dirs(study):
        if read_state_or_raise(path).result is None:
            continue
        name, network_dir = path.relative_to(study).as_posix(), folder.network_of(path)
        texts = {column: _compact(network_dir / file) for column, file in _OF_NETWORK.items()}
        texts |= {column: _compact(path / file) for column, file in _OF_EVALUATION.items()}
        rows.append({FOLDER: name, **texts})
        verdicts.append(parquet.read_verdicts(path).assign(**{FOLDER: name}))
    write_table(to / EVALUATIONS, pd.DataFrame(rows))
    table = pd.concat(verdicts, ignore_index=True)
    write_table(to / VERDICTS, table[[name for name in (FOLDER, *VERDICT_COLUMNS) if name in table]])


def _compact(path: Path) -> str | None:
    return json.dumps(json.loads(read_text(path))) if path.exists() else None


def is_study(directory: Path) -> bool:
    """Return whether a directory has networks of a sweep, or the tables of a published study."""
    return (directory / EVALUATIONS).exists() or bool(folder.network_folders(directory))


def read_stored_states(study: Path) -> dict[Path, EvaluationState]:
    """Return the rows of evaluations.parquet by folder, none if there is no such file or the folders are there.

    Raises DamagedFileError.
    """
    path = study / EVALUATIONS
    if not path.exists() or folder.network_folders(study):
        return {}
    return parse_file(path, lambda content: _parse(study, parse_table(content)))


def _parse(study: Path, rows: pd.DataFrame) -> dict[Path, EvaluationState]:
    states = {}
    for row in rows.to_dict("records"):
        texts = {name: text for name, text in row.items() if isinstance(text, str) and name != FOLDER}
        content = {name: load_json(text.encode()) for name, text in texts.items()}
        path = study / row[FOLDER]
        evaluation, result = parse_evaluation(content["evaluation"]), parse_result(content["result"])
        states[path] = EvaluationState(
            training=parse_training(content["training"]),
            evaluation=evaluation,
            trained=parse_result(content["trained"]),
            result=result,
            study=parse_study(content.get("study", {})),
            choices=parse_choices(content["chosen"]) if "chosen" in content else [],
            wrongly_right=count_wrongly_right(path, evaluation, result),
        )
    return states


def read_stored_verdicts(path: Path, columns: list[str]) -> pd.DataFrame:
    """Return columns of the verdicts of an evaluation, from its folder or its study's table.

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


@lru_cache(maxsize=1)  # a table for all networks of a study, which are read one after the other
def _verdicts_by_folder(path: Path, columns: tuple[str, ...], changed_at: int) -> dict[Any, pd.DataFrame]:
    table = read_table(path, list(columns))
    if problems := parquet.check_columns(table[list(columns[1:])]):
        raise DamagedFileError(f"{path}: {'; '.join(problems)}")
    return dict(iter(table.groupby(FOLDER, observed=True)))
