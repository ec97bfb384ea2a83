"""Figures of a search, against the candidates that they are drawn from."""

import optuna
import pytest
from made_studies import add, right, section_of
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import create_trial

from harness.common import names
from harness.report.figures import searches
from harness.storage import folder
from harness.work.search import JOURNAL, OBJECTIVES

TEXT = "tpe, 8 candidates, evaluated on 5,000 images held out of training"


@pytest.fixture(params=[[names.CERTIFIED_ERROR, names.STANDARD_ERROR], [names.CERTIFIED_ERROR]], ids=["front", "one"])
def searched(request, tmp_path):
    """Eight candidates, errors by their kappa alone, and a winner."""
    search_dir = tmp_path / "study" / "search" / "tpe-of-a-test"
    search_dir.mkdir(parents=True)
    storage = JournalStorage(JournalFileBackend(str(search_dir / JOURNAL)))
    study = optuna.create_study(storage=storage, study_name="cnn5 ibp", directions=["minimize"] * len(request.param))
    study.set_user_attr(OBJECTIVES, request.param)
    for number in range(8):
        kappa, l1 = number * 3 % 8 / 8, number / 8
        study.add_trial(
            create_trial(
                params={"train.kappa": kappa, "train.l1": l1},
                distributions={key: FloatDistribution(0, 1) for key in ("train.kappa", "train.l1")},
                values=[90 - 40 * kappa, 20 + 30 * kappa**2][: len(request.param)],
            )
        )
    chosen = {"text": TEXT, "search": search_dir.name}
    chosen |= {"front": "cnn5 ibp", "network": "cnn5"} if len(request.param) > 1 else {}
    folder.write_choice(folder.network_of(add(tmp_path / "study", right(100))), chosen)
    return section_of(tmp_path / "study"), study.trials


def test_rows_are_marked_and_the_section_says_so(searched):
    data, _ = searched
    assert list(data.section.cells["chosen by"]) == [TEXT]
    assert f"All rows' settings were chosen by a search ({TEXT}), then trained anew." in data.section.notes
    assert data.section.labels == ["cnn5 ibp"]


def test_the_search_s_figure_has_each_candidate_and_the_best_so_far(searched):
    data, candidates = searched
    axes = searches.search(data).axes
    assert len([panel for panel in axes if panel.lines]) == len(candidates[0].values)
    for objective, panel in enumerate(axes[: len(candidates[0].values)]):
        points, best = panel.lines
        values = [one.values[objective] for one in candidates]
        assert list(points.get_ydata()) == values
        assert [min(values[: count + 1]) for count in range(8)] == list(best.get_ydata())


def test_importance_is_that_of_the_setting_that_decides(searched):
    data, candidates = searched
    axes = searches.importance(data).axes
    assert len(axes) == len(candidates[0].values)
    for panel in axes:
        assert [label.get_text() for label in panel.get_yticklabels()] == ["train.l1", "train.kappa"]
        assert panel.patches[-1].get_width() > 50


def test_the_fronts_of_winners_are_drawn_with_their_hypervolumes(searched):
    data, candidates = searched
    figure = searches.fronts(data)
    if len(candidates[0].values) == 1:
        assert figure is None
        return
    dominated, best = figure.axes[0].lines
    trial = data.trials.iloc[0]
    assert not len(dominated.get_xdata())
    assert [*best.get_xdata(), *best.get_ydata()] == [trial[names.STANDARD_ERROR], trial[names.CERTIFIED_ERROR]]
    volume = (100 - trial[names.STANDARD_ERROR]) * (100 - trial[names.CERTIFIED_ERROR]) / 100
    assert figure.legends[0].get_texts()[0].get_text() == f"cnn5 ibp {volume:.2f} %"
    assert any(f"cnn5 ibp {volume:.2f} %" in line for line in data.section.sentences)
