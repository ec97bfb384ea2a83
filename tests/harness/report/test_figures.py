"""What figures show, against the numbers that they are drawn from."""

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from made_studies import add, make, right, section_of
from safetensors.torch import save_file

from harness.attacks.counterexamples import pack
from harness.common import names
from harness.leaderboard.table import build_leaderboard
from harness.report.figures import error_figures, images, networks, style, training
from harness.report.figures.catalogue import FIGURES, figures_of
from harness.report.figures.section_data import SectionData
from harness.settings import Recipe
from harness.storage import folder, training_progress
from harness.storage.files import DamagedFileError

GOLDEN = Path(__file__).parents[1] / "golden"
ELSEWHERE = {"counterexamples", "search", "importance", "fronts", "length", "radii"}
"""Figures that the study lacks: it has no images, no search, one length and one eps."""


def copy_golden(tmp_path):
    """The folder of the evaluation of a golden network, copied to a sweep's directory."""
    return next((shutil.copytree(GOLDEN / "cnn5", tmp_path / "golden/networks/x") / folder.EVALUATIONS).iterdir())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return section_of(make(tmp_path_factory.mktemp("results") / "study"))


@pytest.fixture(scope="module")
def drawn(data):
    return {kind.name: figure for kind, figure in figures_of(data)}


def test_every_figure_has_something_to_show(drawn):
    """Warnings, such as of a layout that collapses, are errors in tests."""
    assert drawn.keys() == {kind.name for kind in FIGURES} - ELSEWHERE
    for figure in drawn.values():
        figure.draw_without_rendering()


def test_the_bars_of_stages_are_the_shares_of_images(data, drawn):
    (axes,) = drawn["stages"].axes
    widths = np.array([patch.get_width() for patch in axes.patches]).reshape(-1, len(data.section.own))
    means = data.trials.groupby("label", sort=False)[[names.STANDARD_ERROR, names.UNDECIDED_ERROR]].mean()
    assert widths.sum(0) == pytest.approx(100)
    assert widths[0] == pytest.approx(means[names.STANDARD_ERROR])
    assert widths[-1] == pytest.approx(means[names.UNDECIDED_ERROR])


def test_depth_shows_widths_before_and_after_training(drawn):
    """Depth is the option of that name, else counted; equilibria have none."""
    before, after = drawn["depth"].axes
    assert before.get_yscale() == after.get_yscale() == "log"
    points = {(x, y) for line in before.lines if line.get_marker() != "None" for x, y in line.get_xydata()}
    assert points == {(3.0, 5000.0), (5.0, 5000.0), (6.0, 5000.0)}
    assert sum(list(line.get_xdata()) == [0, 1] for line in before.lines) == 2  # cerdeq by two methods


def test_depth_has_a_point_for_each_row_and_joins_none_of_one_depth(tmp_path):
    for epochs, model, depth in ((10, "cnn5", 5), (40, "cnn5", 5), (10, "cnn7", 7), (10, "cnn7", 9)):
        train = Recipe(epochs=epochs, ramp_epochs=epochs // 2, decay_epochs=(epochs - 2,))
        add(tmp_path / "study", right(100 + epochs - depth), model=model, train=train, options={"depth": depth})
    data = section_of(tmp_path / "study")
    data.trials[names.BOUND_WIDTH] = [1.0, 100.0, 3.0, 4.0]
    _, after = networks.depth(data).axes
    assert [list(line.get_xdata()) for line in after.lines if line.get_marker() == "None"] == [[7, 9]]
    points = sorted(tuple(point) for line in after.lines if line.get_marker() != "None" for point in line.get_xydata())
    assert points == [(5, 1), (5, 100), (7, 3), (9, 4)]


@pytest.mark.parametrize(("missed", "is_shown"), [(1e-6, False), (2.0, True)])
def test_a_missed_radius_is_shown_where_it_is_more_than_rounding(tmp_path, missed, is_shown):
    network_dir = folder.network_of(add(tmp_path / "study", right(100), model="cerdeq"))
    rows = training_progress.read_epochs(network_dir)
    (network_dir / folder.EPOCHS).unlink()
    for row in rows:
        row |= {names.in_training(names.MISSED_RADIUS): missed * row[names.EPOCH]}
        training_progress.write_epoch(network_dir, row)
    figure = training.curves(section_of(tmp_path / "study"))
    titles = [axes.get_title("left") for axes in figure.axes]
    assert ("missed radius, %" in titles) == is_shown
    assert ("Missed radius" in figure.get_label()) == is_shown, "it is explained where it is drawn"


RADII = ("1/8", "1/16", "1/32")  # 1/16 is that of the main evaluation


def test_certified_errors_against_eps_are_a_line_for_each_row_once_on_the_page(tmp_path):
    """A section that differs in more than eps has no point; one without a row gives it a shorter label elsewhere."""
    for seed, eps in product(range(2), RADII):
        steps = {"is_main": eps == "1/16", "eps": eps, "seed": seed}
        add(tmp_path / "study", right(100 + 10 * RADII.index(eps) + 2 * seed), **steps)
        if eps != "1/32":
            add(tmp_path / "study", right(80), train=Recipe(epochs=200), **steps)
    add(tmp_path / "study", right(10), evaluation={"attack_steps": 50}, is_main=False)
    sections = build_leaderboard(tmp_path / "study").sections
    figures = [error_figures.radii(SectionData(section, sections)) for section in sections]
    assert [str(section.eps) for section in sections][:1] == ["1/16"]
    assert [figure is not None for figure in figures] == [True, False, False, False]
    (axes,) = figures[0].axes
    points = {len(line.get_xdata()): line.get_xydata() for line in axes.lines}
    assert points[3] == pytest.approx(np.array([[1 / 32, 39.5], [1 / 16, 44.5], [1 / 8, 49.5]]))
    assert points[2] == pytest.approx(np.array([[1 / 16, 60.0], [1 / 8, 60.0]]))
    bars = [bar.get_segments() for bar in axes.collections]
    assert np.ptp(np.array(bars[0])[:, :, 1], axis=1) == pytest.approx([2**0.5] * 3)
    assert sorted(text.get_text() for text in axes.get_xticklabels()) == sorted(RADII)
    assert len(figures[0].legends[0].get_texts()) == 2


def test_curves_are_those_of_the_best_rows_that_were_trained_here(tmp_path):
    for number in range(len(style.COLOURS)):
        path = add(tmp_path / "study", right(190 - number), model="cnn7", options={"depth": number + 2})
        (folder.network_of(path) / folder.EPOCHS).unlink()
    add(tmp_path / "study", right(20))
    figure = training.curves(section_of(tmp_path / "study"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cnn5 ibp"]


def test_length_has_a_line_for_each_network_and_a_point_for_each_length(tmp_path):
    """Rows are joined across schedules, and only across those."""
    for epochs, clip_norm, seed in product((10, 40), (10.0, None), range(2)):
        train = Recipe(epochs=epochs, ramp_epochs=epochs // 2, decay_epochs=(epochs - 2,), clip_norm=clip_norm)
        add(tmp_path / "study", right(100 + epochs + 2 * seed), seed=seed, train=train)
    add(tmp_path / "study", right(90), model="cnn7", train=Recipe(epochs=10, ramp_epochs=5, decay_epochs=(8,)))
    certified, standard = error_figures.length(section_of(tmp_path / "study")).axes
    points = [[tuple(point) for point in line.get_xydata()] for line in certified.lines]
    assert np.concatenate(sorted(points)) == pytest.approx(np.array([(10, 44.5), (40, 29.5)] * 2 + [(10, 55.0)]))
    assert [label.get_text() for label in certified.get_xticklabels()] == ["10", "40"]
    bars = [segment for bar in certified.collections for segment in bar.get_segments() if len(segment)]
    assert [np.ptp(bar[:, 1]) for bar in bars] == pytest.approx([2**0.5] * 4), "the row of one seed has no bar"
    assert len(standard.lines) == 3


def test_adversarial_examples_are_shown_with_the_network_s_prediction(tmp_path):
    point = torch.full((1, 8, 8), 32767, dtype=torch.int16)
    save_file({"3": point, "10": pack(-point)}, copy_golden(tmp_path) / folder.COUNTEREXAMPLES)
    figure = images.counterexamples(section_of(tmp_path / "golden"))
    assert [axes.get_title().split(":")[0] for axes in figure.axes[:2]] == ["3", "10"]
    original, adversarial, difference = (figure.axes[row * 2].images[0].get_array() for row in range(3))
    assert adversarial.max() <= 1 and (adversarial >= original - 1e-12).all()
    assert difference.max() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("stored", [{"3": torch.ones(3)}, {"3/x": torch.ones(1)}, {"5000": torch.ones(1, 8, 8)}])
def test_adversarial_examples_that_cannot_be_read_are_named(tmp_path, stored):
    path = copy_golden(tmp_path)
    save_file({name: tensor.to(torch.int16) for name, tensor in stored.items()}, path / folder.COUNTEREXAMPLES)
    with pytest.raises(DamagedFileError, match=str(path)):
        images.counterexamples(section_of(tmp_path / "golden"))


@pytest.mark.parametrize("name", [folder.COUNTEREXAMPLES, folder.EPOCHS])
def test_where_a_figure_cannot_be_drawn_the_reason_is_given_and_the_others_are_there(tmp_path, name):
    path = copy_golden(tmp_path)
    damaged = path / name if name == folder.COUNTEREXAMPLES else folder.network_of(path) / name
    damaged.write_text("junk")
    figures = {kind.name: figure for kind, figure in figures_of(section_of(tmp_path / "golden"))}
    reasons = [figure for figure in figures.values() if isinstance(figure, str)]
    assert reasons and all(str(damaged.parent) in reason for reason in reasons)
    assert not isinstance(figures["tradeoff"], str)


def test_each_row_looks_the_same_in_all_figures_and_no_two_alike(data, drawn):
    looks = {label: (look["color"], look["marker"]) for label, look in data.looks.items()}
    assert len(set(looks.values())) == len(looks) == 6
    lines = {(line.get_color(), line.get_marker()) for line in drawn["curves"].axes[0].lines}
    assert lines == set(looks.values())


def test_layers_stand_in_each_network_s_own_order(drawn):
    """Though cnn5's last one comes before cnn7's fourth in a table of both."""
    lines = {axes.get_title("left"): axes.lines for axes in drawn["layers"].axes}
    assert all(list(line.get_ydata()) == sorted(line.get_ydata()) for group in lines.values() for line in group)
    assert [len(line.get_xdata()) for line in lines["cnn7"]] == [5] * 4
