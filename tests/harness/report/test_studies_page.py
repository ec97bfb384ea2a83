"""`python -m harness.tables` of several directories: one page of all studies, and headless Chromium where it is."""

import re
import shutil
from pathlib import Path

import pytest
from headless import CHROMIUM, DRIVER, browsing
from made_studies import add, right

from harness.command_line import main

RESULTS = Path(__file__).parents[3] / "results"
HEADER = "dataset,eps,model,method,standard_error,certified_error,relu,extra_data,verifier,undecided,source,url\n"
SCRIPT = "\"'><script>alert(1)</script>"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two sweeps, a published one, and papers, one of which is hostile."""
    results = tmp_path_factory.mktemp("results")
    papers = (
        "digits,1/16,CNN-7,SABR,2,39,yes,no,complete,1,B 2024,https://example.org/b",
        f'digits,1/16,"{SCRIPT.replace(chr(34), chr(34) * 2)}",,2,41,yes,no,IBP,,C 2020,',
        "digits,1/4,CNN-7,SABR,2,39,yes,no,complete,1,D 2024,",
    )
    (results / "literature.csv").write_text(HEADER + "".join(f"{line}\n" for line in papers))
    for model, count in (("cnn5", 120), ("cnn7", 100), ("cerdeq", 140)):
        add(results / "first", right(count), model=model)
    shutil.copytree(results / "first", results / "published/copy")
    add(results / "published/older", right(150), eps="1/8")
    add(results / "second", right(90), options={"depth": 7})
    add(results / "second", right(190), options={"depth": 9}, profile="cpu")
    assert main("tables", [str(path) for path in sorted(results.iterdir())]) == 0
    return results


def rows_of(page):
    """The texts of each row, by heading."""
    sections = re.findall(r"<h2>(.*?)</h2>(.*?)</section>", page, re.DOTALL)
    lines = {heading: re.findall(r"<tr class.*?</tr>", body, re.DOTALL) for heading, body in sections}
    return {
        heading: [re.findall(r"<td>(.*?)</td>", line.replace(" class=", "")) for line in its]
        for heading, its in lines.items()
    }


def test_rows_of_studies_stand_among_those_of_papers_by_data_set_and_eps(results):
    rows = rows_of((results / "index.html").read_text())
    assert [heading.partition(", ")[2] for heading in rows] == ["eps 1/16", "eps 1/8"]
    first, second = rows.values()
    certified = [float(row[1].partition(" ")[0]) for row in first]
    assert certified[:-1] == sorted(certified[:-1]), "the last one is of another profile"
    assert first[-1][6] == "reduced, all test images" and certified[-1] < certified[0]
    papers = [row for row in first if "2024" in row[-1] or "2020" in row[-1]]
    assert [row[5] for row in papers] == ["complete", "IBP"]
    assert '<a href="https://example.org/b" rel="noreferrer">B 2024</a>' in papers[0][-1]
    assert {row[-1] for row in first} - {row[-1] for row in papers} == {
        f'<a href="{study}/report.html" rel="noreferrer">{study}</a>' for study in ("first", "second")
    }, "a row that lies twice is shown once, and the others lead to their study"
    assert [row[0] for row in second] == ["cnn5 ibp"]


def test_texts_of_papers_are_never_markup(results):
    page = (results / "index.html").read_text()
    assert page.count("<script") == 1 and "&lt;script&gt;" in page


def test_of_a_fresh_clone_the_page_has_the_published_studies(tmp_path, capsys):
    published = tmp_path / "published/reduced-mnist"
    shutil.copytree(RESULTS / "published/reduced-mnist", published)
    shutil.copy(RESULTS / "literature.csv", tmp_path)
    arguments = [str(tmp_path / "published"), str(tmp_path / "literature.csv")]
    assert main("tables", arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path}/index.html\n"
    (rows,) = rows_of((tmp_path / "index.html").read_text()).values()
    ours = [row for row in rows if "published/reduced-mnist/leaderboard.md" in row[-1]]
    assert {row[6] for row in ours} == {f"reduced, first {number} test images" for number in ("1,000", "4,000")}
    assert {row[6] for row in rows if row not in ours} == {"full"}
    path = published / "evaluations.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    assert main("tables", arguments) == 2
    error = capsys.readouterr().err
    assert str(path) in error and error.count("\n") == 1


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
def test_filters_and_titles_in_a_browser_that_asks_the_network_for_nothing(results, tmp_path):
    from selenium.webdriver.support.ui import Select

    visible = """
        return [...document.querySelectorAll("section:not([hidden]) tbody tr:not([hidden])")].map(row => row.cells[1].innerText)
    """  # noqa: E501
    with browsing(tmp_path, "1280,900") as browser:
        browser.get((results / "index.html").as_uri())
        everything = browser.execute_script(visible)
        for name, value in (("eps", "1/16"), ("verifier", "complete"), ("by", "papers")):
            Select(browser.find_element("name", name)).select_by_visible_text(value)
        assert browser.execute_script(visible) == ["39.00"]
        assert browser.find_element("css selector", "output").text == f"1 of {len(everything)} rows"
        for name in ("verifier", "by"):
            Select(browser.find_element("name", name)).select_by_visible_text("all")
        before = browser.execute_script(visible)
        browser.find_element("xpath", "//th[.='certified error']").click()
        browser.find_element("xpath", "//th[contains(., 'certified error')]").click()
        assert browser.execute_script(visible) == before[-2::-1] + before[-1:], "reduced rows stay last"
        wide = "return [...document.querySelectorAll('body, .wide')].map(e => e.scrollWidth - e.clientWidth)"
        assert max(browser.execute_script(wide)) <= 0
        assert browser.get_log("browser") == []
        requests = [
            entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]
        ]
        assert requests and not any('"url":"http' in message for message in requests)
