"""Comparisons as sentences: which row is best, which rows it beats significantly, whether CerDEQ is better.

The only place that writes such sentences: the terminal, the Markdown leaderboard and the pages print them.
"""

from dataclasses import dataclass, field

import pandas as pd

from harness.analysis.comparisons import ALL, compare
from harness.analysis.leaderboard import Leaderboard, Section
from harness.errors import InputError
from harness.storage import names

FEWEST_SEEDS = 3  # that rank two rows
SUMMARY_LEGEND = (
    "p: paired t test over the seeds that both rows have, corrected for the number of rows compared (Holm); "
    "significant below .05."
)
_LEVEL = 0.05
_MOST_NAMED = 5
_CERDEQ = ("cerdeq", "deqlate", "deq7")
_NO_RECURRENCE = "recurrent=False"  # makes CerDEQ an explicit network


@dataclass(frozen=True)
class Summary:
    """What a section's comparisons say.

    lines: sentences.
    tied: labels of the best row and of those without a significant difference from it; empty where there are none.
    differences: how each other row compares with the best one: lines of `compare`, and `seeds`, how many both have.
    """

    lines: list[str] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)
    differences: pd.DataFrame = field(default_factory=pd.DataFrame)


def summaries_of(leaderboard: Leaderboard) -> dict[str, Summary]:
    """Return each section's summary by its heading."""
    return {section.heading: summarise(leaderboard, section) for section in leaderboard.sections}


def summarise(leaderboard: Leaderboard, section: Section) -> Summary:
    """Return what a section's comparisons say; nothing of stale sections and of fewer than two rows."""
    rows = section.comparable
    if section.is_stale or section.own[names.CERTIFIED_ERROR].count() < 2:
        return Summary()
    best = rows["label"].iloc[0]
    try:
        lines, notes = compare(leaderboard, baseline=best, heading=section.heading)
    except InputError as error:
        return Summary([f"not compared: {error}"])
    seeds = lines[lines["seed"] != ALL].groupby("row").size()
    differences = lines[lines["seed"] == ALL].assign(seeds=lambda line: line["row"].map(seeds))
    tested = differences[differences["seeds"] >= FEWEST_SEEDS]
    tied = tested.loc[tested["t_holm"] >= _LEVEL, "row"].tolist()
    left_out = [f"left out: {note}" for note in notes if " against " in note]
    sentence = _best_row(best, rows[names.CERTIFIED_ERROR].iloc[0], differences)
    return Summary([sentence, *left_out], [best, *tied] if tied else [], differences)


def _best_row(best: str, error: float, differences: pd.DataFrame) -> str:
    most = int(differences["seeds"].max())
    if most < FEWEST_SEEDS:
        return _too_few(most)
    tested = differences[differences["seeds"] >= FEWEST_SEEDS]
    p = tested["t_holm"]
    groups = {
        "significantly better than": tested[p < _LEVEL],
        "no significant difference from": tested[p >= _LEVEL],
        "no t test, since the difference is the same at every seed:": tested[p.isna()],
    }
    sentences = [f"best: {best}, {error:.1f} %"]
    sentences += [f"{words} {_row_names(rows)}" for words, rows in groups.items() if len(rows)]
    unranked = differences.loc[differences["seeds"] < FEWEST_SEEDS, "row"].tolist()
    if unranked:
        rows = unranked[0] if len(unranked) == 1 else f"{len(unranked)} rows"
        sentences.append(f"not ranked, with fewer than {FEWEST_SEEDS} seeds in common: {rows}")
    return "; ".join(sentences)


def _row_names(rows: pd.DataFrame) -> str:
    tests = zip(rows["row"], rows["t_holm"], strict=True)
    texts = [row if pd.isna(p) else f"{row} ({_p(p)})" for row, p in tests]
    more = len(texts) - _MOST_NAMED
    return ", ".join(texts[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _p(value: float) -> str:
    if value < 0.001:
        return "p < .001"
    return f"p = {value:.3f}".replace("0.", ".") if value < 0.1 else f"p = {value:.2f}".replace("0.", ".")


def _too_few(seeds: int) -> str:
    number = "1 seed is" if seeds == 1 else f"{seeds} seeds are"
    return f"{number} too few to rank rows; run 5 or more (`--set seeds=[0,1,2,3,4]`)."


def is_cerdeq_better(section: Section, summary: Summary) -> str:
    """Return whether the best CerDEQ row beats the best other row of a section, in one sentence."""
    rows = section.comparable
    is_cerdeq = rows["model"].isin(_CERDEQ) & ~rows["options"].str.split().map(lambda words: _NO_RECURRENCE in words)
    if not is_cerdeq.any() or is_cerdeq.all():
        lacking = "other network" if is_cerdeq.any() else "CerDEQ"
        return f"Not known: no {lacking} has a result that can be compared here."
    cerdeq, other = rows[is_cerdeq].iloc[0], rows[~is_cerdeq].iloc[0]
    cerdeq_first = bool(is_cerdeq.iloc[0])  # the best row of all is one of the two
    lines = summary.differences
    if len(lines):
        lines = lines[lines["row"] == (other if cerdeq_first else cerdeq)["label"]]
    if lines.empty:
        return f"Not known: {cerdeq['label']} and {other['label']} cannot be compared image by image."
    line = lines.iloc[0]
    if line["seeds"] < FEWEST_SEEDS:
        return f"Not known: {_too_few(int(line['seeds']))}"
    points = -line["difference"] if cerdeq_first else line["difference"]
    numbers = (
        f"{cerdeq['label']} {cerdeq[names.CERTIFIED_ERROR]:.2f} %, the best other network "
        f"{other['label']} {other[names.CERTIFIED_ERROR]:.2f} %; "
        f"{points:+.2f} points over the {line['seeds']:.0f} seeds that both have"
    )
    if pd.isna(line["t_holm"]):
        return f"Not known: {numbers}, the same at every seed, so that there is no t test."
    verdict = "No significant difference"
    if line["t_holm"] < _LEVEL:
        verdict = "Yes" if points < 0 else "No"
    return f"{verdict}: {numbers} ({_p(line['t_holm'])})."
