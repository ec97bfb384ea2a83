"""What searches found: candidates on the way to a section's rows, and which settings mattered."""

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.figures.section_data import SectionData
from harness.figures.style import COLOURS, INK, add_legend, panels
from harness.search.rungs import SEARCH
from harness.storage import folder
from harness.storage.files import parse_json

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

# harness.search.results is imported late: Optuna takes a second, and few sweeps are searched.
_BAR = 0.32  # inches of a setting


def fronts(data: SectionData) -> Figure | None:
    """Each entry's candidates by number, or certified against standard error; and the best so far, or hypervolume."""
    from harness.search.results import best_candidates

    searched = [(settings, study) for settings, study in _searched(data) if best_candidates(study)]
    if not searched:
        return None
    figure, axes = panels(len(searched), 2, width=9, height=0.4 + 2.8 * len(searched))
    for pair, (settings, study) in zip(zip(axes[::2], axes[1::2], strict=True), searched, strict=True):
        draw = _one if len(settings["objectives"]) == 1 else _two
        names = [f"{name.replace('_', ' ')}, %" for name in settings["objectives"]]
        draw(*pair, study, names)
        pair[0].set_title(f"{study.study_name}, {settings['sampler']}", loc="left")
        pair[1].set_xlabel("candidate")
        pair[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    entries = {"a candidate": {"color": COLOURS[0], "marker": "o", "ls": ""}}
    entries |= {"as it is written": {"color": COLOURS[1], "marker": "*", "ls": ""}}
    add_legend(figure, entries | {"winner, or best so far": {"color": INK, "ls": "-", "lw": 1}})
    return figure


def importance(data: SectionData) -> Figure | None:
    """The share of each objective's variance that each setting explains."""
    from harness.search.results import importances

    titled_shares = [
        (f"{study.study_name}: {name.replace('_', ' ')}", shares)
        for settings, study in _searched(data)
        for number, name in enumerate(settings["objectives"])
        if (shares := importances(study, number))
    ]
    if not titled_shares:
        return None
    height = sum(0.9 + _BAR * len(shares) for _, shares in titled_shares)
    figure, axes = panels(len(titled_shares), 1, height=height)
    for panel, (title, shares) in zip(axes, titled_shares, strict=True):
        ranked = dict(sorted(shares.items(), key=lambda item: item[1]))
        panel.barh(list(ranked), [100 * share for share in ranked.values()], color=COLOURS[0], height=0.6)
        panel.set_title(title, loc="left")
        panel.set_xlim(0, 100)
    axes[-1].set_xlabel("share of variance, %")
    return figure


def _searched(data: SectionData) -> Iterator[tuple[dict[str, Any], "Study"]]:
    """The searches that chose rows of the section: the settings, and the study of each entry."""
    trial_dirs = [] if data.trials.empty else data.trials["trial_dir"]
    marks = [mark for trial_dir in trial_dirs if (mark := folder.read_chosen(trial_dir))]
    for name in sorted({mark["search"] for mark in marks}):
        from harness.search.studies import load_studies

        search_dir = data.leaderboard.directory / "search" / name
        settings = parse_json(search_dir / SEARCH, lambda content: dict(content["settings"]))
        for study in load_studies(search_dir):
            yield settings, study


def _one(left: Axes, right: Axes, study: "Study", names: list[str]) -> None:
    """Candidates of one objective, and the least of it so far."""
    from harness.search.results import finished_candidates

    finished = finished_candidates(study)
    _points(left, [(candidate, (candidate.number, candidate.values[0])) for candidate in finished])
    left.set(xlabel="candidate", ylabel=names[0])
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    best = list(accumulate((candidate.values[0] for candidate in finished), min))
    right.step([candidate.number for candidate in finished], best, where="post", color=INK, lw=1)
    right.set_ylabel(f"least {names[0]}")


def _two(left: Axes, right: Axes, study: "Study", names: list[str]) -> None:
    """Candidates of two objectives with their front, and its hypervolume so far."""
    from harness.search.results import best_candidates, finished_candidates, hypervolume

    finished = finished_candidates(study)
    _points(left, [(candidate, (candidate.values[1], candidate.values[0])) for candidate in finished])
    front = sorted((candidate.values[1], candidate.values[0]) for candidate in best_candidates(study))
    left.step([x for x, _ in front], [y for _, y in front], where="post", color=INK, lw=1, marker="o", mfc="none", ms=8)
    left.set(xlabel=names[1], ylabel=names[0])
    volumes = [hypervolume([one.values for one in finished[: count + 1]]) for count in range(len(finished))]
    right.step([candidate.number for candidate in finished], volumes, where="post", color=INK, lw=1)
    right.set_ylabel("hypervolume")


def _points(axes: Axes, points: list[tuple["FrozenTrial", tuple[float, float]]]) -> None:
    """Candidates as points; a star for the one that is the entry as it is written."""
    for candidate, (x, y) in points:
        written = "as_written" in candidate.user_attrs
        axes.plot(x, y, "*" if written else "o", ms=11 if written else 5, color=COLOURS[1 if written else 0])
