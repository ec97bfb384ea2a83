"""The rows of a leaderboard: means and deviations over the seeds of finished evaluations."""

import pandas as pd

from harness.leaderboard.columns import COLUMNS, REPORTED
from harness.leaderboard.evaluations import CHOSEN, ENTRY_LABEL, LABEL, setting_columns


def mean_rows(trials: pd.DataFrame) -> pd.DataFrame:
    """Return mean and sample deviation over each config's finished seeds; none of a metric that one of them lacks."""
    finished = trials[trials["problem"].isna()]
    groups = finished.groupby("row", sort=False)
    metrics = [column.name for column in COLUMNS if column.name in trials]
    complete = groups[metrics].count().eq(groups.size(), axis=0)
    means, deviations = groups[metrics].mean().where(complete), groups[metrics].std().where(complete)
    rows = finished.drop_duplicates("row").set_index("row").drop(columns=metrics)
    rows = rows.join([means, deviations.add_suffix("_std")]).copy()  # else pandas warns of its many blocks
    rows["seeds"] = groups.size().astype(object)
    rows["seeds_started"] = trials.groupby("row")["seed"].nunique().reindex(rows.index).astype(object)
    rows["warnings"] = pd.Series({row: _warnings(part) for row, part in groups}, rows.index, dtype=object)
    rows["source"] = pd.Series(None, rows.index, dtype=object)
    numbers = [column for name in metrics for column in (name, f"{name}_std")]
    settings, further = setting_columns(trials), [name for name in (ENTRY_LABEL, CHOSEN, *REPORTED) if name in rows]
    return rows[[*LABEL, "width", *numbers, "seeds", "seeds_started", *settings, *further, "warnings", "source"]]


def _warnings(trials: pd.DataFrame) -> list[str]:
    """Return each warning of a row's trials with the seeds that have it."""
    seeds = trials[["warnings", "seed"]].explode("warnings").dropna().drop_duplicates().groupby("warnings")["seed"]
    return [f"{warning} (seed {', '.join(map(str, sorted(its)))})" for warning, its in seeds]
