"""`python -m harness.report`: the page says what the files say, opens offline, and runs nothing that it is given."""

import json
import re
from html.parser import HTMLParser

import pytest
from made_studies import add, make, right

from harness.analysis.leaderboard import build
from harness.analysis.summary import summary
from harness.command_line import main
from harness.figures import catalogue
from harness.reports.answer import answer
from harness.reports.report import write
from harness.storage import folder


class Page(HTMLParser):
    """Tables as lists of lists of text, addresses, and all ids."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.addresses, self.ids, self.cell = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [value for name, value in attrs.items() if name in ("href", "src", "xlink:href")]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A sweep with its page."""
    sweep = make(tmp_path_factory.mktemp("results") / "study")
    write(sweep)
    return sweep


@pytest.fixture
def one_figure(monkeypatch):
    """Where figures do not matter: each takes a second."""
    monkeypatch.setattr(catalogue, "FIGURES", catalogue.FIGURES[:1])


@pytest.fixture(scope="module")
def page(study):
    return Page((study / "report.html").read_text(encoding="utf-8"))


def test_the_numbers_are_those_of_the_json(study, page):
    rows = json.loads((study / "leaderboard.json").read_text())
    titles, *lines = page.tables[0]
    shown = [dict(zip(titles, line, strict=True)) for line in lines]
    assert len(shown) == len(rows) == 6
    for row, line in zip(rows, shown, strict=True):
        assert line["row"] == f"{row['model']} {row['method']}"
        assert line["certified error"] == f"{row['certified_error']:.2f} ± {row['certified_error_std']:.2f}"
        assert line["seeds"] == "3"


def test_the_page_needs_nothing_but_its_own_directory(study, page):
    assert {address.partition(":")[0] for address in page.addresses if ":" in address} <= {"data"}
    files = [address for address in page.addresses if not address.startswith(("#", "data:"))]
    assert len(files) >= 14
    assert all((study / file).is_file() for file in files)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|url\((?!#)", (study / "report.html").read_text())


def test_writing_again_gives_the_same_bytes(tmp_path, one_figure):
    study = make(tmp_path / "study")
    write(study)
    files = [path for path in study.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    write(study)
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before


def test_each_row_has_the_command_that_trains_it_again(study):
    text = (study / "report.html").read_text()
    for place in (study / "trials").iterdir():
        assert f"/study/trials/{place.name}/trial.json" in text
    assert text.count("--results-dir again") == 6


def test_what_configs_and_results_say_is_never_markup(tmp_path, one_figure):
    attack = "<script>alert('x')</script>"
    add(tmp_path / "study", right(50), options={attack: attack}, profile=attack, warnings=[attack])
    write(tmp_path / "study")
    text = (tmp_path / "study/report.html").read_text()
    assert text.count("<script") == 1
    assert "alert('x')" not in text
    assert text.count("&lt;script&gt;") >= 3


@pytest.mark.parametrize(
    ("cerdeq", "cnn5", "verdict"),
    [
        ([140, 141, 139], [100, 102, 99], "Yes"),
        ([100, 102, 99], [140, 141, 139], "No"),
        ([120, 100, 110], [101, 119, 109], "Not told apart"),
        ([140], [100], "Not known"),
    ],
)
def test_the_answer_is_as_sure_as_the_seeds_allow(tmp_path, cerdeq, cnn5, verdict):
    for model, counts in (("cerdeq", cerdeq), ("cnn5", cnn5)):
        for seed, count in enumerate(counts):
            add(tmp_path / "study", right(count, seed), model=model, seed=seed)
    table = build(tmp_path / "study")
    (said,) = answer(table, table.sections[0])
    gap = (sum(cnn5) - sum(cerdeq)) / len(cnn5) / 2  # of 200 images
    assert said.startswith(f"{verdict}: cerdeq ibp")
    assert f"{abs(gap):.2f} points {'below' if gap < 0 else 'above'}" in said


@pytest.mark.parametrize(("models", "lacks"), [(["cnn5", "cnn7"], "CerDEQ"), (["cerdeq"], "other network")])
def test_what_an_answer_lacks_is_said(tmp_path, one_figure, models, lacks):
    for model in models:
        add(tmp_path / "study", right(50), model=model)
    assert answers(tmp_path / "study") == [f"Not known: no {lacks} has a result here."]


def test_the_twin_without_recurrence_is_another_network(tmp_path, one_figure):
    for seed in range(3):
        add(tmp_path / "study", right(100 + 2 * seed, seed), model="cerdeq", seed=seed)
        add(tmp_path / "study", right(140 + seed, seed), model="cerdeq", seed=seed, options={"recurrent": False})
    (said,) = answers(tmp_path / "study")
    assert said.startswith("No: cerdeq ibp") and "the best other network, cerdeq ibp recurrent=False" in said


def test_the_same_difference_at_each_seed_is_no_test_and_no_tie(tmp_path, one_figure):
    for seed in range(3):
        for model, count in (("cerdeq", 140), ("cnn5", 100)):
            add(tmp_path / "study", right(count, seed), model=model, seed=seed)
    (said,) = answers(tmp_path / "study")
    assert said.startswith("Not known: ") and "20.00 points below" in said and "nan" not in said
    assert "~" not in (tmp_path / "study/leaderboard.md").read_text().split("Errors in percent")[0]


def test_a_row_of_one_seed_decides_nothing_beside_rows_of_several(tmp_path, one_figure):
    for seed in range(3):
        add(tmp_path / "study", right(140 + seed, seed), model="cerdeq", seed=seed)
        add(tmp_path / "study", right(100 + 3 * seed, seed), model="cnn5", seed=seed)
    add(tmp_path / "study", right(190), model="cnn7", seed=9)
    (said,) = answers(tmp_path / "study")
    assert said.startswith("Yes: cerdeq ibp") and "cnn5 ibp" in said
    text = (tmp_path / "study/report.html").read_text()
    assert "(of the rows with 2 seeds or more; 1 have one)" in text


def test_one_row_that_cannot_be_compared_leaves_the_others_compared(tmp_path):
    for seed in range(3):
        add(tmp_path / "study", right(140 + seed, seed), model="cerdeq", seed=seed)
        add(tmp_path / "study", right(100 + 3 * seed, seed), model="cnn5", seed=seed)
        broken = add(tmp_path / "study", right(90 + seed, seed), model="cnn7", seed=seed)
    (broken / folder.VERDICTS).write_text("junk")
    table = build(tmp_path / "study")
    assert answer(table, table.sections[0])[0].startswith("Yes: cerdeq ibp")
    lines = summary(table, table.sections[0]).lines
    assert any(line.startswith("worse for certain") and "cnn5 ibp" in line for line in lines)
    assert any(line.startswith("left out: cnn7 ibp against cerdeq ibp") and "cannot be read" in line for line in lines)


def answers(sweep):
    """What the page of a sweep says first."""
    table, _ = write(sweep)
    return answer(table, table.sections[0])


def test_several_sweeps_have_a_page_that_leads_to_each(tmp_path, capsys, one_figure):
    for name, eps in (("far", "1/8"), ("near", "1/16")):
        add(tmp_path / name, right(50), eps=eps)
    (tmp_path / "no-sweep").mkdir()
    assert main("report", [str(path) for path in sorted(tmp_path.iterdir())]) == 0
    assert str(tmp_path / "index.html") in capsys.readouterr().out
    index = Page((tmp_path / "index.html").read_text())
    assert {"far/report.html", "near/report.html", "figures/eps.svg", "figures/eps.pdf"} <= set(index.addresses)
    assert all((tmp_path / name).is_file() for name in index.addresses if not name.startswith(("#", "data:")))


def test_a_directory_without_trials_is_bad_input(tmp_path, capsys):
    assert main("report", [str(tmp_path)]) == 2
    assert "holds no trials" in capsys.readouterr().err
    assert main("report", [str(tmp_path), str(tmp_path)]) == 2


def test_the_answer_is_by_the_seeds_that_both_have(tmp_path):
    for model, seeds in (("cnn5", (0, 1, 2)), ("cerdeq", (1, 2, 3))):
        for seed in seeds:
            add(tmp_path / "study", right(100 + 10 * seed + (model == "cerdeq"), seed), model=model, seed=seed)
    table = build(tmp_path / "study")
    (said,) = answer(table, table.sections[0])
    assert "0.50 points below" in said and "by the seeds that both have (2)" in said


def test_there_is_no_comparison_where_no_seed_is_shared(tmp_path):
    for seed, model in enumerate(("cnn5", "cerdeq")):
        add(tmp_path / "study", right(100), model=model, seed=seed)
    table = build(tmp_path / "study")
    assert answer(table, table.sections[0])[0].endswith("; the two share no seed.")
