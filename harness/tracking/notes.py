"""The notes, in Markdown, that MLflow's pages show for a run and for an experiment."""

import shlex

from harness.leaderboard.files import markdown_table, markdown_text
from harness.leaderboard.rows import describe_evaluation
from harness.leaderboard.summary import Summary, short_table
from harness.leaderboard.table import Leaderboard, Section
from harness.storage import folder
from harness.storage.folder import TrialRecord

TAG = "mlflow.note.content"
_MAX_LENGTH = 5000  # characters that every store takes


def describe_run(trial: TrialRecord, row: str, run_id: str, uri: str) -> str:
    """Return a note with a trial's row, how it is evaluated, and how to run it again. uri: without a password."""
    config = trial.config
    evaluation = markdown_text(describe_evaluation(config, is_certification=False))
    return (
        f"**{markdown_text(row)}**, seed {config.seed}: {config.dataset}, l-inf eps {config.eps}, profile "
        f"{markdown_text(config.profile)}; evaluated by {evaluation}.\n\n"
        "To run it again on the same data:\n\n```sh\n"
        f"MLFLOW_TRACKING_URI={shlex.quote(uri)} uv run mlflow artifacts download -r {run_id} -a {folder.TRIAL} -d .\n"
        f"uv run python -m harness.run --here {folder.TRIAL} --results-dir again\n```"
    )[:_MAX_LENGTH]


def describe_experiment(table: Leaderboard) -> str:
    """Return a note with a sweep's short leaderboard, as many of its sections as fit."""
    note = f"The sweep **{markdown_text(table.sweep)}**: one run for each trial, with the leaderboard under `tables/`."
    for section in map(_short_table, table.sections):
        if len(note) + len(section) + 2 > _MAX_LENGTH:
            break
        note += f"\n\n{section}"
    return note


def _short_table(section: Section) -> str:
    parts = [f"### {markdown_text(section.heading)}", *(f"**{markdown_text(note)}**" for note in section.notes)]
    return "\n\n".join([*parts, markdown_table(short_table(section, Summary()), section.is_literature)])
