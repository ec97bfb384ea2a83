"""What figures show, against the numbers that they are drawn from."""

import os
import shutil
from itertools import combinations, pairwise, product
from pathlib import Path

import made_studies
import numpy as np
import pytest
import torch
from made_studies import add, make, make_many, right, section_of
from matplotlib.colors import to_hex
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


@pytest.mark.parametrize("name", [kind.name for kind in FIGURES if kind.name not in ELSEWHERE])
def test_every_figure_has_something_to_show_and_texts_do_not_overlap(drawn, name):
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


@pytest.mark.slow
def test_figures_of_many_rows_stay_of_a_size_that_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for kind, figure in figures_of(section_of(make_many(tmp_path / "many", rows=48, seeds=1, images=100, epochs=3))):
        figure.draw_without_rendering()  # which warns where a legend leaves no room
        assert figure.get_figheight() < 15, kind.name
        assert all(len(legend.get_texts()) <= 12 for legend in figure.legends), kind.name


def test_figures_of_rows_with_long_labels_keep_their_room(tmp_path):
    """Warnings, such as of a layout that collapses, are errors in tests."""
    for number, (model, clip_norm) in enumerate(product(("cnn5", "cnn7", "cerdeq"), (1.0, 2.0, 3.0, 4.0))):
        options = {"gain": None, "groups": 8, "margin": 0.1, "parametrisation": "orthogonal"}
        train = Recipe(epochs=160, ramp_epochs=80, decay_epochs=(120, 140, 145 + number), clip_norm=clip_norm)
        add(tmp_path / "study", right(120 - 4 * number), model=model, options=options, train=train)
    for kind, figure in figures_of(section_of(tmp_path / "study")):
        figure.draw_without_rendering()
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, kind.name
        for axes in figure.axes:
            assert not axes.axison or axes.get_window_extent().height > figure.dpi, (kind.name, "an inch")
            boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
            assert kind.name not in ("seeds", "stages") or not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_undecided_images_have_a_colour_of_their_own(drawn):
    handles = {text.get_text(): handle for legend in drawn["stages"].legends
               for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)}  # fmt: skip
    assert handles["undecided"].get_color() == "#f0e442"


def test_a_figure_on_a_page_has_its_colour_and_ids_of_its_own(drawn):
    one, two = (style.svg(drawn["seeds"], name, "Errors") for name in ("one", "two"))
    assert ">cerdeq ibp</text>" in one
    ids = [set(part.split('"')[0] for part in each.split(' id="')[1:]) for each in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    assert style.INK not in one and "currentColor" in one and 'role="img" aria-label="Errors"' in one


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


def test_two_depths_make_no_figure(tmp_path):
    for depth in (5, 7):
        add(tmp_path / "study", right(100 - depth), options={"depth": depth})
    assert networks.depth(section_of(tmp_path / "study")) is None


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


def test_two_radii_make_no_figure(tmp_path):
    for eps in RADII[1:]:
        add(tmp_path / "study", right(100), eps=eps)
    assert error_figures.radii(section_of(tmp_path / "study")) is None


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


def test_length_joins_no_schedules_of_one_length(tmp_path):
    for epochs, ramp_epochs in ((10, 2), (40, 2), (40, 20)):
        train = Recipe(epochs=epochs, ramp_epochs=ramp_epochs, decay_epochs=(epochs - 2,))
        add(tmp_path / "study", right(100 + ramp_epochs), train=train)
    certified, _ = error_figures.length(section_of(tmp_path / "study")).axes
    (line,) = certified.lines
    assert list(line.get_xdata()) == [10, 40, 40] and line.get_linestyle() == "None"


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


@pytest.mark.parametrize("name", ["stages", "relus"])
def test_parts_of_bars_have_no_colour_of_a_row(drawn, name):
    colours = {to_hex(patch.get_facecolor()) for axes in drawn[name].axes for patch in axes.patches}
    assert len(colours) >= 3 and not colours & set(style.COLOURS)


@pytest.mark.parametrize("name", ["seeds", "layers", "depth"])
def test_colours_of_rows_mean_those_rows(data, drawn, name):
    def used(axes):
        yield from (line.get_color() for line in axes.lines)
        yield from (to_hex(colour) for points in axes.collections for colour in points.get_facecolor())

    colours = {colour for axes in drawn[name].axes for colour in used(axes)} & set(style.COLOURS)
    assert colours == {look["color"] for look in data.looks.values()}


def test_a_row_looks_the_same_in_all_sections_of_a_page(tmp_path):
    for eps, order in (("1/16", 1), ("1/8", -1)):
        for number in range(10):
            learning = Recipe(learning_rate=1e-4 * (1 + number))
            add(tmp_path / "study", right(100 + 5 * order * number), train=learning, eps=eps, is_main=eps == "1/16")
    add(tmp_path / "study", right(100), model="cnn7", profile="cpu")
    main, other, cpu = build_leaderboard(tmp_path / "study").sections
    looks = SectionData(main, [main, other, cpu]).looks
    assert [looks[label]["color"] for label in main.labels] == [*style.COLOURS, style.GREY, style.GREY]
    assert sorted(main.labels) == sorted(other.labels) and main.labels != other.labels
    assert looks[cpu.labels[0]]["color"] == style.COLOURS[0]


def test_a_network_of_one_preactivation_has_whole_numbers_on_its_axis(tmp_path, monkeypatch):
    monkeypatch.setitem(made_studies.LAYERS, "cnn5", 1)
    add(tmp_path / "study", right(100))
    data = section_of(tmp_path / "study")
    for figure in (networks.layers(data), networks.relus(data)):
        low, high = figure.axes[0].get_xlim()
        assert [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high] == [1]


def test_layers_stand_in_each_network_s_own_order(drawn):
    """Though cnn5's last one comes before cnn7's fourth in a table of both."""
    lines = {axes.get_title("left"): axes.lines for axes in drawn["layers"].axes}
    assert all(list(line.get_ydata()) == sorted(line.get_ydata()) for group in lines.values() for line in group)
    assert [len(line.get_xdata()) for line in lines["cnn7"]] == [5] * 4
