"""What searches found: candidates on the way to a section's rows, and which settings mattered."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.figures.section_data import SectionData
from harness.report.figures.style import COLOURS, INK, add_legend, panels
from harness.storage import folder
from harness.storage.files import parse_json
from harness.tune.search.rungs import SEARCH

if TYPE_CHECKING:
    from optuna import Study

# harness.tune.search.results is imported late: Optuna takes a second, and few sweeps are searched.
_BAR = 0.32  # inches of a setting


def search(data: SectionData) -> Figure | None:
    """Finished candidates, evaluated on validation images, never on test images.

    Hypervolume: the share of the square of errors, 100 % by 100 %, that the front so far dominates.
    """
    from harness.tune.search.results import best_candidates, finished_candidates, hypervolume

    searched = [(settings, study) for settings, study in _searched(data) if best_candidates(study)]
    if not searched:
        return None
    figure, axes = panels(2 * len(searched), 2, width=9, height=0.4 + 2.8 * len(searched))
    for left, right, (settings, study) in zip(axes[::2], axes[1::2], searched, strict=True):
        titles = [f"{name.replace('_', ' ')}, %" for name in settings["objectives"]]
        finished = finished_candidates(study)
        numbers, values = [one.number for one in finished], [one.values for one in finished]
        if len(titles) == 1:
            points = [(number, value) for number, (value,) in zip(numbers, values, strict=True)]
            left.set(xlabel="candidate", ylabel=titles[0])
            left.xaxis.set_major_locator(MaxNLocator(integer=True))
            so_far = np.minimum.accumulate([value for (value,) in values])
            right.set_ylabel(f"least {titles[0]}")
        else:
            points = [(second, first) for first, second in values]
            left.set(xlabel=titles[1], ylabel=titles[0])
            front = sorted((second, first) for first, second in (one.values for one in best_candidates(study)))
            left.step(*zip(*front, strict=True), where="post", color=INK, lw=1, marker="o", mfc="none", ms=8)
            so_far = np.array([hypervolume(values[: count + 1]) for count in range(len(values))])
            right.set_ylabel("hypervolume")
        for one, point in zip(finished, points, strict=True):
            is_written = "as_written" in one.user_attrs
            left.plot(*point, "*" if is_written else "o", ms=11 if is_written else 5, color=COLOURS[is_written])
        right.step(numbers, so_far, where="post", color=INK, lw=1)
        left.set_title(f"{study.study_name}, {settings['sampler']}", loc="left")
        right.set_xlabel("candidate")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
    entries = {"a candidate": {"color": COLOURS[0], "marker": "o", "ls": ""}}
    entries |= {"as it is written": {"color": COLOURS[1], "marker": "*", "ls": ""}}
    add_legend(figure, entries | {"winner, or best so far": {"color": INK, "ls": "-", "lw": 1}})
    return figure


def importance(data: SectionData) -> Figure | None:
    """fANOVA over finished candidates.

    The share of an objective's variance that a setting explains by itself, in the spaces that were searched.
    """
    from harness.tune.search.results import importances

    titled_shares = [
        (f"{study.study_name}: {name.replace('_', ' ')}", shares)
        for settings, study in _searched(data)
        for number, name in enumerate(settings["objectives"])
        if (shares := importances(study, number))
    ]
    if not titled_shares:
        return None
    height = sum(0.9 + _BAR * len(shares) for _, shares in titled_shares)
    figure, axes = panels(len(titled_shares), height=height)
    for panel, (title, shares) in zip(axes, titled_shares, strict=True):
        ranked = dict(sorted(shares.items(), key=lambda item: item[1]))
        panel.barh(list(ranked), [100 * share for share in ranked.values()], color=COLOURS[0], height=0.6)
        panel.set_title(title, loc="left")
        panel.set_xlim(0, 100)
    axes[-1].set_xlabel("share of variance, %")
    return figure


def _searched(data: SectionData) -> Iterator[tuple[dict[str, Any], "Study"]]:
    """The searches that chose rows of the section: the settings, and the study of each entry."""
    chosen = {path: mark["search"] for path in data.trials["trial_dir"] if (mark := folder.read_chosen(path))}
    for search_dir in sorted({path.parents[1] / "search" / name for path, name in chosen.items()}):
        from harness.tune.search.studies import load_studies

        settings = parse_json(search_dir / SEARCH, lambda content: dict(content["settings"]))
        for study in load_studies(search_dir):
            yield settings, study
