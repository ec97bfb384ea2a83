"""Figures of a search, against the candidates that they are drawn from."""

import numpy as np
import pytest
from made_studies import add, right
from optuna.trial import create_trial

from harness.common import names
from harness.leaderboard.table import build_leaderboard
from harness.report.figures import searches
from harness.report.figures.section_data import SectionData
from harness.storage import folder
from harness.storage.files import write_json
from harness.sweep.search import Searched, SearchSettings, Space
from harness.sweep.trial import TrialConfig
from harness.tune.search.results import best_candidates, describe_choice, hypervolume
from harness.tune.search.rungs import SEARCH
from harness.tune.search.studies import begin_studies, distributions

BASE = TrialConfig("study", "full", "digits", "1/16", 0, "cnn5", "ibp")
SPACES = {"train.kappa": Space(uniform=[0.0, 1.0]), "train.l1": Space(uniform=[0.0, 1.0])}


@pytest.fixture(params=[[names.CERTIFIED_ERROR, names.STANDARD_ERROR], [names.CERTIFIED_ERROR]], ids=["front", "one"])
def searched(request, tmp_path):
    """Eight candidates, errors by their kappa alone, and a winner."""
    settings = SearchSettings(spaces=SPACES, objectives=request.param, trials=8)
    search_dir = tmp_path / "study" / "search" / "tpe-of-a-test"
    write_json(search_dir / SEARCH, {"settings": settings.model_dump(mode="json")})
    (study,) = begin_studies(search_dir, settings, [Searched(BASE, SPACES, lambda chosen: BASE)])
    draws = np.random.default_rng(0).uniform(size=(8, 2)).round(3).tolist()
    for kappa, l1 in [(0.0, 0.0), *draws[1:]]:
        parameters = {"train.kappa": kappa, "train.l1": l1}
        values = [90 - 40 * kappa, 20 + 30 * kappa**2][: len(request.param)]
        trial = create_trial(
            params=parameters, distributions=distributions(SPACES), values=values, user_attrs={"settings": parameters}
        )
        study.add_trial(trial)
    content = describe_choice(study, settings, search_dir.name, best_candidates(study)[0])
    folder.write_chosen(add(tmp_path / "study", right(100)), content)
    return SectionData(build_leaderboard(tmp_path / "study").sections[0]), study.trials


def test_rows_are_marked_and_the_section_says_so(searched):
    data, _ = searched
    text = "tpe, 8 candidates, evaluated on 5,000 images held out of training"
    assert list(data.section.cells["chosen by"]) == [text]
    assert f"All rows' settings were chosen by a search ({text}), then trained anew." in data.section.notes
    assert data.section.labels == ["cnn5 ibp"]


def test_the_search_s_figure_ends_where_the_search_does(searched):
    data, candidates = searched
    _, right_axes = searches.search(data).axes
    (line,) = right_axes.lines
    values = [one.values for one in candidates]
    end = hypervolume(values) if len(values[0]) == 2 else min(value for (value,) in values)
    assert line.get_ydata()[-1] == pytest.approx(end) and len(line.get_xdata()) == 8


def test_importance_is_that_of_the_setting_that_decides(searched):
    data, candidates = searched
    axes = searches.importance(data).axes
    assert len(axes) == len(candidates[0].values)
    for panel in axes:
        assert [label.get_text() for label in panel.get_yticklabels()] == ["train.l1", "train.kappa"]
        assert panel.patches[-1].get_width() > 50
