"""What searches found: the errors of candidates, fronts of winners, and which settings mattered."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.leaderboard.fronts import FRONT, NETWORK, front_of, fronts_of, winners_of
from harness.report.figures.section_data import SectionData
from harness.report.figures.style import COLOURS, DASHES, GREY, INK, MARKERS, add_legend, assign, panels
from harness.storage import folder

if TYPE_CHECKING:
    from optuna import Study

# harness.work.search is imported late: Optuna takes a second, and few sweeps are searched.
_LEAST = 4
"""Importances are estimated from so many candidates, or more."""


def search(data: SectionData) -> Figure | None:
    """Finished candidates, evaluated on validation images, never on test images."""
    shown = list(_objectives(data))
    if not shown:
        return None
    figure, axes = panels(len(shown), 2, width=9, height=0.4 + 2.8 * ((len(shown) + 1) // 2))
    for panel, (study, number, title) in zip(axes, shown, strict=True):
        candidates = [one for one in study.trials if one.values]
        values = np.array([one.values[number] for one in candidates])
        panel.plot([one.number for one in candidates], values, "o", ms=5, color=GREY)
        panel.step([one.number for one in candidates], np.minimum.accumulate(values), where="post", color=INK, lw=1)
        panel.set_title(study.study_name, loc="left")
        panel.set(xlabel="candidate", ylabel=f"{title}, %")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    entries = {"a candidate": {"color": GREY, "marker": "o", "ls": ""}}
    add_legend(figure, entries | {"best so far": {"color": INK, "ls": "-", "lw": 1}})
    return figure


def fronts(data: SectionData) -> Figure | None:
    """Winners, trained anew with every seed: lower left is better. Grey: another winner of the front is better.

    Percentages: hypervolumes, with intervals over seeds. A colour for each network, a marker for each method.
    """
    shown = fronts_of(data.trials)
    if not shown:
        return None
    figure, (axes,) = panels(width=9, height=4.2)
    networks = winners_of(data.trials).drop_duplicates(FRONT).set_index(FRONT)
    colours, markers, dashes = (
        assign(networks[name], looks) for name, looks in ((NETWORK, COLOURS), ("method", MARKERS), ("method", DASHES))
    )
    entries = {}
    for each in shown:
        kind = networks.loc[each.name]
        look = {"color": colours[kind[NETWORK]], "marker": markers[kind["method"]]}
        best = front_of(each.errors)
        axes.plot(*np.delete(each.errors, best, axis=0).T, ls="", marker=look["marker"], color=GREY, ms=4, alpha=0.6)
        line = look | {"ls": dashes[kind["method"]], "lw": 1, "ms": 6}
        axes.plot(*each.errors[best].T, drawstyle="steps-post", **line)
        entries[each.text] = line
    axes.set(xlabel="standard error, %", ylabel="certified error, %")
    add_legend(figure, entries)
    return figure


def importance(data: SectionData) -> Figure | None:
    """fANOVA over finished candidates.

    The share of an objective's variance that a setting explains by itself, in the spaces that were searched.
    """
    shares = {f"{study.study_name}: {title}": _shares(study, number) for study, number, title in _objectives(data)}
    shown = {title: own for title, own in shares.items() if own}
    if not shown:
        return None
    figure, axes = panels(len(shown), height=sum(0.9 + 0.32 * len(own) for own in shown.values()))
    for panel, (title, own) in zip(axes, shown.items(), strict=True):
        ranked = dict(sorted(own.items(), key=lambda item: item[1]))
        panel.barh(list(ranked), [100 * share for share in ranked.values()], color=GREY, height=0.6)
        panel.set_title(title, loc="left")
        panel.set_xlim(0, 100)
    axes[-1].set_xlabel("share of variance, %")
    return figure


def _shares(study: "Study", objective: int) -> dict[str, float]:
    """Return the share of an objective's variance that each setting explains; empty if too few candidates differ."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    values = [one.values[objective] for one in study.trials if one.values]
    if len(values) < _LEAST or len(set(values)) == 1:
        return {}
    evaluator = FanovaImportanceEvaluator(seed=0)
    return get_param_importances(study, evaluator=evaluator, target=lambda trial: trial.values[objective])


def _objectives(data: SectionData) -> Iterator[tuple["Study", int, str]]:
    """Yield the objectives of the searches that chose rows of the section: study, number and name."""
    network_dirs = map(folder.network_of, data.trials["evaluation_dir"])
    searches = {path.parents[1] / "search" / each.search for path in network_dirs for each in folder.read_choices(path)}
    for search_dir in sorted(searches):
        from harness.work.search import OBJECTIVES, load_studies

        for study in load_studies(search_dir):
            for number, name in enumerate(study.user_attrs.get(OBJECTIVES, ())):
                if any(one.values for one in study.trials):
                    yield study, number, name.replace("_", " ")
