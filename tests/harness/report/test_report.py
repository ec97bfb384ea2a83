"""`python -m harness.tables`: the page shows what the files hold, opens offline, and runs nothing that is in them."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from made_studies import add, make, right

from harness.command_line import main
from harness.report.figures import catalogue
from harness.report.sweep_page import write_sweep


def attributes(page, *names):
    """The values of all attributes of these names."""
    return re.findall(rf'\b(?:{"|".join(names)})="([^"]*)"', page)


def attributes_named(page, name):
    """The values of all attributes of a name, as a browser reads them."""
    values, parser = [], HTMLParser()
    parser.handle_starttag = lambda tag, attributes: values.extend(value for key, value in attributes if key == name)
    parser.feed(page)
    return values


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A sweep with its page; two of the figures, since each takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "FIGURES", catalogue.FIGURES[:2])
        sweep = make(tmp_path_factory.mktemp("results") / "study")
        write_sweep(sweep)
        yield sweep


@pytest.fixture
def text(study):
    return (study / "report.html").read_text(encoding="utf-8")


def test_the_numbers_are_those_of_the_json(study, text):
    rows = json.loads((study / "leaderboard.json").read_text())
    titles = re.findall(r'<button type="button">(.*?)</button>', text)
    lines = re.findall(r"<tr>(<td .*?)</tr>", text)[: len(rows)]
    assert len(rows) == 6
    for row, line in zip(rows, lines, strict=True):
        cells = dict(zip(titles, re.findall("<td[^>]*>(.*?)</td>", line), strict=True))
        assert cells["row"].startswith(f"{row['model']} {row['method']}")
        assert cells["certified error, %"] == f"{row['certified_error']:.2f} ± {row['certified_error_std']:.2f}"
        assert cells["seeds"] == "3"


def test_the_page_needs_no_other_file(study, text):
    addresses, ids = attributes(text, "href", "src"), attributes(text, "id")
    assert {address.partition(":")[0] for address in addresses if ":" in address} <= {"data"}
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not (study / "figures").exists() and not (study / "leaderboard.tex").exists()
    assert len(ids) == len(set(ids))
    assert not re.search(r"@import|url\((?!#)", text)


def test_latex_has_a_table_and_figures_which_are_then_kept_up_to_date(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    assert main("tables", [str(tmp_path / "study"), "--latex"]) == 0
    figures = sorted((tmp_path / "study/figures").iterdir())
    assert {path.suffix for path in figures} == {".pdf"} and len(figures) == 2
    before = (tmp_path / "study/leaderboard.tex").read_text(), figures[0].read_bytes()
    figures[0].unlink()
    (tmp_path / "study/leaderboard.tex").write_text("old")
    write_sweep(tmp_path / "study")
    assert ((tmp_path / "study/leaderboard.tex").read_text(), figures[0].read_bytes()) == before


def test_writing_again_gives_the_same_bytes(study):
    files = [path for path in study.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    write_sweep(study)
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before


def test_each_row_has_the_command_that_trains_it_again(study, text):
    for network_dir in (study / "networks").iterdir():
        assert f"--only {network_dir.name}" in text
    assert "harness.run sweeps/study.yaml --here --profile full --only" in text
    assert text.count("--results-dir again") == 6


def test_what_configs_and_results_hold_is_never_markup(study, tmp_path):
    attack = "\"' onload='alert()'><script>alert('x')</script>"
    add(tmp_path / "study", right(50), options={attack: attack}, profile=attack, warnings=[attack])
    write_sweep(tmp_path / "study")
    text = (tmp_path / "study/report.html").read_text()
    assert text.count("<script") == 1 and not attributes_named(text, "onload")
    assert text.count("&lt;script&gt;") >= 3


def test_several_sweeps_have_a_page_each(tmp_path, capsys):
    for name, eps in (("far", "1/8"), ("near", "1/16")):
        add(tmp_path / name, right(50), eps=eps)
    (tmp_path / "no-sweep").mkdir()
    assert main("tables", [str(path) for path in sorted(tmp_path.iterdir())]) == 0
    pages = [tmp_path / name for name in ("far/report.html", "near/report.html", "index.html")]
    assert all(path.is_file() for path in pages)
    assert capsys.readouterr().out.split() == [str(path) for path in pages]
