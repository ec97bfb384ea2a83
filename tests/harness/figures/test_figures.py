"""What figures show, against the numbers that they are drawn from."""

import os
import shutil
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_studies import make, make_many
from safetensors.torch import save_file

from harness.analysis.leaderboard import build
from harness.figures import errors, images, style
from harness.figures.catalogue import FIGURES, figures_of
from harness.figures.shown import Shown
from harness.storage import folder, names

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    table = build(make(tmp_path_factory.mktemp("results") / "study"))
    return Shown(table, table.sections[0])


@pytest.fixture(scope="module")
def drawn(shown):
    return {kind.name: figure for kind, figure in figures_of(shown)}


ELSEWHERE = {"counterexamples", "search", "importance"}  # the study has no images and was not searched


def test_every_figure_has_something_to_show(drawn):
    assert set(drawn) == {kind.name for kind in FIGURES} - ELSEWHERE


@pytest.mark.parametrize("name", [kind.name for kind in FIGURES if kind.name not in ELSEWHERE])
def test_texts_of_a_figure_do_not_overlap(drawn, name):
    figure = drawn[name]
    figure.draw_without_rendering()
    for axes in figure.axes:
        for labels in (axes.get_yticklabels(), axes.get_xticklabels()):
            boxes = [label.get_window_extent() for label in labels if label.get_text() and label.get_visible()]
            inside = [box for box in boxes if box.width and axes.get_window_extent().expanded(2, 1.2).overlaps(box)]
            assert not any(a.overlaps(b) for a, b in pairwise(inside))
        assert axes.get_tightbbox().x1 <= figure.bbox.x1 + 1
    titles = [axes._left_title.get_window_extent() for axes in figure.axes if axes.get_title("left")]
    assert not any(a.overlaps(b) for a, b in combinations(titles, 2))


def test_figures_of_many_rows_stay_of_a_size_that_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    table = build(make_many(tmp_path / "many", rows=48, seeds=1, images=100, epochs=3))
    for kind, figure in figures_of(Shown(table, table.sections[0])):
        figure.draw_without_rendering()  # which warns where a legend leaves no room
        assert figure.get_figheight() < 15, kind.name
        assert all(len(legend.get_texts()) <= 12 for legend in figure.legends), kind.name


def test_a_figure_is_written_twice_the_same_with_texts_as_texts(drawn, tmp_path):
    first = style.write(drawn["seeds"], tmp_path / "a")
    assert style.write(drawn["seeds"], tmp_path / "b") == first
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert ">cerdeq ibp</text>" in first


def test_inline_figures_take_the_page_s_colour_and_share_no_ids(drawn, tmp_path):
    text = style.write(drawn["stages"], tmp_path / "stages")
    one, two = (style.inline(text, name, "Stages") for name in ("one", "two"))
    ids = [set(part.split('"')[0] for part in each.split(' id="')[1:]) for each in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    assert style.INK not in one and "currentColor" in one
    assert 'role="img" aria-label="Stages"' in one


def test_the_front_has_the_rows_that_no_other_beats_in_both():
    draw = np.random.default_rng(0).integers(0, 12, (40, 2)).astype(float)
    rows = pd.DataFrame(draw, columns=[names.STANDARD_ERROR, names.CERTIFIED_ERROR])
    front = {tuple(point) for point in errors._front(rows).to_numpy()}
    beaten = {(a, b) for a, b in draw if any((c <= a and d <= b) and (c, d) != (a, b) for c, d in draw)}
    assert front == {tuple(point) for point in draw} - beaten


def test_the_bars_of_stages_are_the_shares_of_images(shown, drawn):
    (axes,) = drawn["stages"].axes
    rows = len(shown.rows)
    widths = np.array([patch.get_width() for patch in axes.patches]).reshape(-1, rows)
    assert widths.sum(0) == pytest.approx(100)
    means = shown.trials.groupby("label", sort=False)[[names.STANDARD_ERROR, names.OPEN_ERROR]].mean()
    assert widths[0] == pytest.approx(means[names.STANDARD_ERROR])
    assert widths[-1] == pytest.approx(means[names.OPEN_ERROR])


def test_depth_shows_widths_before_and_after_training(shown, drawn):
    before, after = drawn["depth"].axes
    assert before.get_yscale() == after.get_yscale() == "log"
    lines = [line for line in before.lines if list(line.get_xdata()) == [5.0, 7.0]]
    assert len(lines) == 2  # of two methods
    assert list(lines[0].get_ydata()) == [100 * 50, 100 * 50]


def test_broken_images_are_shown_with_what_the_network_takes_them_for(tmp_path):
    place = tmp_path / "golden/trials/x"
    shutil.copytree(GOLDEN / "cnn5", place)
    point = torch.full((1, 8, 8), 32767, dtype=torch.int16)
    save_file({"3": point, "10": -point}, place / folder.COUNTEREXAMPLES)
    table = build(tmp_path / "golden")
    figure = images.counterexamples(Shown(table, table.sections[0]))
    assert len(figure.axes) == 6
    assert [axes.get_title().split(":")[0] for axes in figure.axes[:2]] == ["3", "10"]
    original, broken, difference = (figure.axes[row * 2].images[0].get_array() for row in range(3))
    assert broken.max() <= 1 and (broken >= original - 1e-12).all()
    assert difference.max() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", [folder.WEIGHTS, folder.COUNTEREXAMPLES, folder.EPOCHS])
def test_a_figure_that_cannot_be_drawn_is_told_and_the_others_are_there(tmp_path, name):
    place = tmp_path / "golden/trials/x"
    shutil.copytree(GOLDEN / "cnn5", place)
    save_file({"3": torch.full((1, 8, 8), 32767, dtype=torch.int16)}, place / folder.COUNTEREXAMPLES)
    (place / name).write_text("junk")
    table = build(tmp_path / "golden")
    found = {kind.name: figure for kind, figure in figures_of(Shown(table, table.sections[0]))}
    told = {kind: figure for kind, figure in found.items() if isinstance(figure, str)}
    assert told and all(str(place) in why for why in told.values())
    assert not isinstance(found["tradeoff"], str)


def test_each_row_looks_the_same_in_all_figures_and_no_two_alike(shown, drawn):
    looks = {label: (look["color"], look["marker"]) for label, look in shown.looks.items()}
    assert len(set(looks.values())) == len(looks) == 6
    for name in ("time", "curves"):
        lines = {(line.get_color(), line.get_marker()) for line in drawn[name].axes[0].lines}
        assert lines == set(looks.values())


def test_layers_stand_in_each_network_s_own_order(shown, drawn):
    """Though cnn5's last one comes before cnn7's fourth in a table of both."""
    lines = {axes.get_title("left"): axes.lines for axes in drawn["layers"].axes}
    for model, drawn_lines in lines.items():
        for line in drawn_lines:
            assert list(line.get_ydata()) == sorted(line.get_ydata()), model
    assert [len(line.get_xdata()) for line in lines["cnn7"]] == [5] * 4
