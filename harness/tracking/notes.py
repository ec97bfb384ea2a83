"""What MLflow's pages say of a run and of an experiment, as Markdown."""

import shlex

from harness.analysis.columns import columns_of
from harness.analysis.leaderboard import Leaderboard, Section
from harness.analysis.table_files import markdown_table, markdown_text
from harness.analysis.trials import evaluated_by
from harness.storage import folder
from harness.storage.folder import Trial, TrialResult

TAG = "mlflow.note.content"
LONGEST = 5000  # characters that every store takes


def of_run(trial: Trial, row: str, result: TrialResult | None, error: str | None, run_id: str, uri: str) -> str:
    """A trial's row, its errors, how it was judged, how to run it again, its warnings.

    error: why it failed, where it did. uri: the store, without a password.
    """
    config, errors = trial.config, columns_of("error", "open")
    judged = evaluated_by(config, certified=False)
    parts = [
        f"**{markdown_text(row)}**, seed {config.seed}: {config.dataset}, l-inf eps {config.eps}, "
        f"profile {markdown_text(config.profile)}; judged by {markdown_text(judged)}."
    ]
    if result:
        values = [column.value(result) for column in errors]
        cells = ["not finite" if value is None else f"{value:.2f} %" for value in values]
        parts.append(_table([column.title for column in errors], [cells]))
    if error:
        parts.append(f"Failed: {markdown_text(error)}")
    parts.append(
        "The same again, on the same data:\n\n```sh\n"
        f"MLFLOW_TRACKING_URI={shlex.quote(uri)} uv run mlflow artifacts download -r {run_id} -a {folder.TRIAL} -d .\n"
        f"uv run python -m harness.trial {folder.TRIAL} --results-dir again\n```"
    )
    if result:
        found = result.environment
        told = ", ".join(f"{name} {found[name]}" for name in ("code", "device", "torch") if name in found)
        parts.append(f"That was with {markdown_text(told)}; data's fingerprint {trial.fingerprint}.")
        parts += [f"- Warning: {markdown_text(warning)}" for warning in result.warnings]
    return "\n\n".join(parts)[:LONGEST]


def of_experiment(table: Leaderboard) -> str:
    """A sweep's leaderboard in brief, as many of its sections as a note holds, and the commands for more of it."""
    sweep = table.sweep
    parts = [
        f"The sweep **{markdown_text(sweep)}**, a run a trial; each has the leaderboard under `tables/`.\n\n```sh\n"
        f"uv run python -m harness.ui {sweep}\n"
        f"uv run python -m harness.tables results/{sweep} --from-mlflow URI\n```"
    ]
    for section in map(_brief, table.sections):
        if len("\n\n".join([*parts, section])) > LONGEST:
            break
        parts.append(section)
    return "\n\n".join(parts)


def _brief(section: Section) -> str:
    titles = [column.title for column in columns_of("error") if column.title in section.cells] + ["seeds"]
    shown = section.cells[titles]
    shown.insert(0, "row", section.labels)
    parts = [f"### {markdown_text(section.heading)}", *(f"**{markdown_text(note)}**" for note in section.notes)]
    return "\n\n".join([*parts, markdown_table(shown, section.published)])


def _table(titles: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows))
