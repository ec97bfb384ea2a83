"""The notes, in Markdown, that MLflow's pages show for a run and for an experiment."""

import shlex

from harness.analysis.columns import ERRORS
from harness.analysis.leaderboard import Leaderboard, Section
from harness.analysis.summary import Summary
from harness.analysis.table_files import markdown_table, markdown_text, short_table
from harness.analysis.trials import evaluated_by
from harness.storage import folder
from harness.storage.folder import Trial, TrialResult

TAG = "mlflow.note.content"
_MAX_LENGTH = 5000  # characters that every store takes


def describe_run(trial: Trial, row: str, result: TrialResult | None, error: str | None, run_id: str, uri: str) -> str:
    """Return a note with a trial's row, its errors, how it was evaluated, how to run it again, and its warnings.

    Args:
        error: why the trial failed, if it did.
        uri: the store, without a password.
    """
    config = trial.config
    parts = [
        f"**{markdown_text(row)}**, seed {config.seed}: {config.dataset}, l-inf eps {config.eps}, profile "
        f"{markdown_text(config.profile)}; evaluated by {markdown_text(evaluated_by(config, certified=False))}."
    ]
    if result:
        values = [result.metrics.get(column.name) for column in ERRORS]
        cells = ["not finite" if value is None else f"{value:.2f} %" for value in values]
        rows = [column.title for column in ERRORS], ["---"] * len(ERRORS), cells
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    if error:
        parts.append(f"Failed: {markdown_text(error)}")
    parts.append(
        "To run it again on the same data:\n\n```sh\n"
        f"MLFLOW_TRACKING_URI={shlex.quote(uri)} uv run mlflow artifacts download -r {run_id} -a {folder.TRIAL} -d .\n"
        f"uv run python -m harness.trial {folder.TRIAL} --results-dir again\n```"
    )
    if result:
        environment = result.environment
        versions = ", ".join(
            f"{name} {environment[name]}" for name in ("code", "device", "torch") if name in environment
        )
        parts.append(f"It ran with {markdown_text(versions)}; the data's fingerprint is {trial.fingerprint}.")
        parts += [f"- Warning: {markdown_text(warning)}" for warning in result.warnings]
    return "\n\n".join(parts)[:_MAX_LENGTH]


def describe_experiment(table: Leaderboard) -> str:
    """Return a note with a sweep's short leaderboard, as many of its sections as fit, and the commands for the rest."""
    sweep = table.sweep
    note = (
        f"The sweep **{markdown_text(sweep)}**, one run for each trial; each run has the leaderboard under `tables/`."
        f"\n\n```sh\nuv run python -m harness.ui {sweep}\n"
        f"uv run python -m harness.tables results/{sweep} --from-mlflow URI\n```"
    )
    for section in map(_short_table, table.sections):
        if len(note) + len(section) + 2 > _MAX_LENGTH:
            break
        note += f"\n\n{section}"
    return note


def _short_table(section: Section) -> str:
    parts = [f"### {markdown_text(section.heading)}", *(f"**{markdown_text(note)}**" for note in section.notes)]
    return "\n\n".join([*parts, markdown_table(short_table(section, Summary()), section.published)])
