"""Searches of settings: their candidates, and which settings mattered."""

from collections.abc import Iterator
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.figures.section_data import SectionData
from harness.figures.style import COLOURS, INK, add_legend, panels
from harness.search.candidates import FINISHED, Candidate, Search, candidates_of, read_search
from harness.search.results import best_of, hypervolume
from harness.storage import folder

# harness.search.optimiser is imported late: Optuna takes a second, and few sweeps are searched.
_BAR = 0.32  # inches of a setting


def fronts(data: SectionData) -> Figure | None:
    """Each entry's candidates by number, or certified against standard error; and the best so far, or hypervolume."""
    searches = [(search, entry, own) for search, entry, own in _searches(data) if best_of(own)]
    if not searches:
        return None
    figure, axes = panels(len(searches), 2, width=9, height=0.4 + 2.8 * len(searches))
    for panel, (search, entry, own) in zip(zip(axes[::2], axes[1::2], strict=True), searches, strict=True):
        draw = _one if len(search.settings.objectives) == 1 else _two
        draw(*panel, [candidate for candidate in own if candidate.state == FINISHED], search)
        panel[0].set_title(f"{search.entries[entry].written.row}, {search.settings.sampler}", loc="left")
        panel[1].set_xlabel("candidate")
        panel[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    entries = {"a candidate": {"color": COLOURS[0], "marker": "o", "ls": ""}}
    entries |= {"as written in the file": {"color": COLOURS[1], "marker": "*", "ls": ""}}
    add_legend(figure, entries | {"chosen, or best so far": {"color": INK, "ls": "-", "lw": 1}})
    return figure


def importance(data: SectionData) -> Figure | None:
    """The share of each objective's variance that each setting explains."""
    from harness.search.optimiser import importances

    bars = [
        (f"{search.entries[entry].written.row}: {name.replace('_', ' ')}", shares)
        for search, entry, own in _searches(data)
        for number, name in enumerate(search.settings.objectives)
        if (shares := importances(search.settings, search.entries[entry].spaces, own, number))
    ]
    if not bars:
        return None
    height = sum(0.9 + _BAR * len(shares) for _, shares in bars)
    figure, axes = panels(len(bars), 1, height=height)
    for panel, (title, shares) in zip(axes, bars, strict=True):
        ranked = dict(sorted(shares.items(), key=lambda item: item[1]))
        panel.barh(list(ranked), [100 * share for share in ranked.values()], color=COLOURS[0], height=0.6)
        panel.set_title(title, loc="left")
        panel.set_xlim(0, 100)
    axes[-1].set_xlabel("share of variance, %")
    return figure


def _searches(data: SectionData) -> Iterator[tuple[Search, int, list[Candidate]]]:
    """The searches that chose rows of the section: of each entry its candidates."""
    trial_dirs = [] if data.trials.empty else data.trials["trial_dir"]
    marks = [mark for trial_dir in trial_dirs if (mark := folder.read_chosen(trial_dir))]
    for name in sorted({mark["search"] for mark in marks}):
        search = read_search(data.leaderboard.directory / "search" / name)
        candidates = candidates_of(search)
        for entry in range(len(search.entries)):
            yield search, entry, [candidate for candidate in candidates if candidate.entry == entry]


def _one(left: Axes, right: Axes, finished: list[Candidate], search: Search) -> None:
    """Candidates of one objective, and the least of it so far."""
    name = f"{search.settings.objectives[0].replace('_', ' ')}, %"
    _points(left, [(candidate, (candidate.number, candidate.values[0])) for candidate in finished], search)
    left.set(xlabel="candidate", ylabel=name)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    best = list(accumulate((candidate.values[0] for candidate in finished), min))
    right.step([candidate.number for candidate in finished], best, where="post", color=INK, lw=1)
    right.set_ylabel(f"least {name}")


def _two(left: Axes, right: Axes, finished: list[Candidate], search: Search) -> None:
    """Candidates of two objectives with their front, and its hypervolume so far."""
    names = [name.replace("_", " ") for name in search.settings.objectives]
    _points(left, [(candidate, (candidate.values[1], candidate.values[0])) for candidate in finished], search)
    front = sorted((candidate.values[1], candidate.values[0]) for candidate in best_of(finished))
    left.step([x for x, _ in front], [y for _, y in front], where="post", color=INK, lw=1, marker="o", mfc="none", ms=8)
    left.set(xlabel=f"{names[1]}, %", ylabel=f"{names[0]}, %")
    volumes = [hypervolume([one.values for one in finished[: count + 1]]) for count in range(len(finished))]
    right.step([candidate.number for candidate in finished], volumes, where="post", color=INK, lw=1)
    right.set_ylabel("hypervolume")


def _points(axes: Axes, points: list[tuple[Candidate, tuple[float, float]]], search: Search) -> None:
    """Candidates as points; a star for the one that is the entry as it is written."""
    for candidate, (x, y) in points:
        written = candidate.settings == search.entries[candidate.entry].settings
        axes.plot(x, y, "*" if written else "o", ms=11 if written else 5, color=COLOURS[1 if written else 0])
