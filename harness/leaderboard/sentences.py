"""Comparisons as sentences: which row is best, which rows it beats significantly, whether an equilibrium is better.

The only place that writes such sentences: the terminal, the Markdown leaderboard and the pages print them.
"""

from dataclasses import dataclass, field
from math import comb

import pandas as pd

from harness.common import names
from harness.common.errors import InputError
from harness.leaderboard.comparisons import ALL, SIGNIFICANCE, compare, holm, too_few_seeds
from harness.leaderboard.section import FEWEST_SEEDS, Section

SUMMARY_LEGEND = (
    "p: paired t test over the seeds that both rows have, corrected for all pairs of rows (Holm), since the best row "
    f"is chosen by the same errors; significant below {str(SIGNIFICANCE)[1:]}."
)
_MOST_NAMED = 3


@dataclass(frozen=True)
class Summary:
    """What a section's comparisons say.

    lines: sentences.
    tied: labels of the best row and of those without a significant difference from it; empty where there are none.
    answer: whether the best row with an equilibrium beats the best other row, one sentence; empty without such rows.
    """

    lines: list[str] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)
    answer: str = ""


def summarise(section: Section) -> Summary:
    """Return what a section's comparisons say; two rows are needed for one."""
    if section.own[names.CERTIFIED_ERROR].count() < 2:
        return Summary(answer=_answer_on_equilibria(section, None))
    best = section.comparable.iloc[0]
    try:
        lines, pairs, _ = compare([section], baseline=best["label"])
    except InputError as error:
        return Summary([f"not compared: {error}"], answer=_answer_on_equilibria(section, None))
    seeds = lines[lines["seed"] != ALL].groupby("row").size()
    differences = lines[lines["seed"] == ALL].set_index("row").assign(seeds=seeds)
    tested = differences[differences["seeds"] >= FEWEST_SEEDS].index
    p = holm(differences.loc[tested, "t_p"], tests=comb(len(tested) + 1, 2))  # any pair could have had the best row
    differences["p"] = p.reindex(differences.index)
    tied = tested[p >= SIGNIFICANCE].tolist()
    left_out = [f"left out: {pair}" for pair in pairs]
    sentence = _best_row_sentence(f"best: {best['label']}, {best[names.CERTIFIED_ERROR]:.1f} %", differences)
    answer = _answer_on_equilibria(section, differences)
    return Summary([sentence, *left_out], [best["label"], *tied] if tied else [], answer)


def _best_row_sentence(sentence: str, differences: pd.DataFrame) -> str:
    """Return which rows the best one beats. differences: lines of `compare` with `seeds`, by row."""
    few = differences["seeds"] < FEWEST_SEEDS
    if few.all():
        return too_few_seeds(differences["seeds"].max())
    p = differences.loc[~few, "p"]
    unranked = _row_names(few[few]) if few.sum() == 1 else f"{few.sum()} rows"
    differ, equal, untested = p[p < SIGNIFICANCE], p[p >= SIGNIFICANCE], p[p.isna()]
    is_better = differences.loc[differ.index, "difference"] > 0
    better, worse = differ[is_better], differ[~is_better]
    parts = {
        f"significantly better than {_row_names(better)} ({_p(better.max(), len(better), '≤')})": better,
        f"but significantly worse than {_row_names(worse)} over the seeds that both have "
        f"({_p(worse.max(), len(worse), '≤')})": worse,
        f"no significant difference from {_row_names(equal)} ({_p(equal.min(), len(equal), '≥')})": equal,
        f"no t test, since the difference is the same at every seed: {_row_names(untested)}": untested,
        f"not ranked, with fewer than {FEWEST_SEEDS} seeds in common: {unranked}": few[few],
    }
    return "; ".join([sentence, *(part for part, rows in parts.items() if len(rows))])


def _row_names(rows: pd.Series) -> str:
    more = len(rows) - _MOST_NAMED
    return ", ".join(rows.index[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _p(value: float, rows: int = 1, sign: str = "") -> str:
    """Return a p value as text. sign: that stands for the equals sign where the value is a bound of several rows'."""
    if value < 0.001:
        return "p < .001"
    return f"p {sign if rows > 1 else '='} {value:.{3 if value < 0.1 else 2}f}".replace("0.", ".")


def _answer_on_equilibria(section: Section, differences: pd.DataFrame | None) -> str:
    """Return whether the best row with an equilibrium beats the best other row of a section, in one sentence."""
    rows, has_equilibrium = section.comparable, section.has_equilibrium
    if not has_equilibrium.any():
        return ""
    if has_equilibrium.all():
        return "Not known: no other network has a result that can be compared here."
    equilibrium, other = rows[has_equilibrium].iloc[0], rows[~has_equilibrium].iloc[0]
    equilibrium_first = bool(has_equilibrium.iloc[0])  # the best row of all is one of the two
    second = (other if equilibrium_first else equilibrium)["label"]
    if differences is None or second not in differences.index:
        return f"Not known: {equilibrium['label']} and {other['label']} cannot be compared image by image."
    line = differences.loc[second]
    if line["seeds"] < FEWEST_SEEDS:
        return f"Not known: {too_few_seeds(line['seeds'])}"
    points = -line["difference"] if equilibrium_first else line["difference"]
    numbers = (
        f"{equilibrium['label']} {equilibrium[names.CERTIFIED_ERROR]:.2f} %, the best network without an equilibrium "
        f"{other['label']} {other[names.CERTIFIED_ERROR]:.2f} %; "
        f"{points:+.2f} points over the {line['seeds']} seeds that both have"
    )
    if pd.isna(line["p"]):
        return f"Not known: {numbers}, the same at every seed, so that there is no t test."
    verdict = "No significant difference"
    if line["p"] < SIGNIFICANCE:
        verdict = "Yes" if points < 0 else "No"
    return f"{verdict}: {numbers} ({_p(line['p'])})."
