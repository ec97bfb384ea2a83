"""A section of the leaderboard as text: notes above its table, cells, and what each stage decided."""

import math
from itertools import starmap
from typing import Any

import pandas as pd

from harness.common import names
from harness.config.trial import row_name, value_text
from harness.leaderboard.columns import INTEGER, Column
from harness.leaderboard.rows import CHOSEN
from harness.pretrained.network_file import TRAINED_ELSEWHERE
from harness.settings import STAGES, describe_weak_attack


def section_notes(profile: str, trials: pd.DataFrame, is_full_size: bool) -> list[str]:
    """Return what a reader must know before comparing a section's numbers with any others."""
    is_elsewhere, held_out = trials["method"] == TRAINED_ELSEWHERE, trials["validation_images"]
    trained, is_held_out = trials[~is_elsewhere], held_out > 0
    tests = trials.loc[~is_held_out, "evaluation.test_images"]
    notes = []
    if not is_full_size:
        size = f"width {_span(trials['width'])}"
        if not trained.empty:
            size += f", train images {_span(trained['train_images'])}, epochs {_span(trained['train.epochs'])}"
        notes.append(f"Profile {profile}, {size}: not comparable with published numbers.")
    if trained["train_images"].notna().any():
        notes.append(f"Trained on {_span(trained['train_images'])} of the training images.")
    if tests.notna().any():
        notes.append(f"Errors are measured on {_span(tests)} of the test images, the first ones.")
    if is_held_out.any():
        notes.append(
            f"{'All' if is_held_out.all() else 'Some'} errors are measured on {_span(held_out[is_held_out])} "
            "validation images held out of training, not on test images."
        )
    notes += [*_weak_attack_notes(trials), *_search_notes(trials)]
    if is_elsewhere.any():
        notes.append("Networks trained elsewhere are evaluated here; `reported` columns have their papers' numbers.")
    if trials["problem"].notna().all():
        notes.append("No trial has finished yet.")
    return notes


def _span(values: pd.Series) -> str:
    texts = ("all" if pd.isna(value) else f"{value:,}" for value in values.drop_duplicates().sort_values())
    return " or ".join(texts)


def _weak_attack_notes(trials: pd.DataFrame) -> list[str]:
    attacks = trials[["evaluation.attack_step", "evaluation.attack_steps"]].drop_duplicates()
    texts = filter(None, starmap(describe_weak_attack, attacks.itertuples(index=False)))
    return [f"In {'all' if len(attacks) == 1 else 'some'} rows, {text}." for text in texts]


def _search_notes(trials: pd.DataFrame) -> list[str]:
    chosen = trials.drop_duplicates("row")[CHOSEN] if CHOSEN in trials else pd.Series(dtype=object)
    which = "All" if chosen.notna().all() else "Some"
    return [
        f"{which} rows' settings were chosen by a search ({text}), then trained anew."
        for text in chosen.dropna().unique()
    ]


def as_text(value: Any) -> str:
    """Return a cell's text; empty for what is missing."""
    return "" if pd.isna(value) else value_text(value)


def row_label(row: dict[str, Any], settings: list[str]) -> str:
    """Return the label of a table's row, as text by column: network, method, options, a paper's source, settings."""
    options = " ".join(filter(None, [row["options"], row.get("source")]))
    return row_name(row["model"], row["method"], options, {name: row[name] for name in settings})


def mean_and_std(rows: pd.DataFrame, column: Column) -> list[str]:
    """Return a column's cells, such as '12.34 ± 0.56'."""

    def cell(mean: float, std: float) -> str:
        if math.isnan(mean):
            return ""
        if math.isnan(std) or (column.format == INTEGER and std == 0):
            return column.text(mean)
        return column.pair(mean, std)

    return [cell(*pair) for pair in zip(rows[column.name], rows[f"{column.name}_std"], strict=True)]


def stages_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Return what each stage decided and took: rows of text, one column per stage. trials: `Section.trials`."""
    means = trials.groupby("label", sort=False).mean(numeric_only=True)
    cells = {
        stage: [_stage_cell(row, stage) for row in means.to_dict("records")]
        for stage in (names.CLEAN, names.ATTACK, *STAGES)
    }
    table = pd.DataFrame({"row": means.index} | {stage: texts for stage, texts in cells.items() if any(texts)})
    return table[table.drop(columns="row").any(axis=1)]


def _stage_cell(metrics: dict[Any, float], stage: str) -> str:
    """Return '50 of 90, 1.2 s'; empty for a stage that did not run."""
    decided, examples = metrics.get(names.decided_by(stage)), metrics.get(names.examples_at(stage))
    seconds = metrics.get(names.seconds_of(stage), math.nan)
    if pd.isna(decided) or pd.isna(examples):
        return ""
    duration = "" if math.isnan(seconds) else f", {seconds:.2g} s" if seconds < 10 else f", {seconds:,.0f} s"
    return f"{decided:,.0f} of {examples:,.0f}{duration}"
