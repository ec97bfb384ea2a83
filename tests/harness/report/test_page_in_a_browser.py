"""The page as a reader has it: headless Chromium, where there is one with its driver."""

import json

import pytest
from headless import CHROMIUM, DRIVER, browsing
from made_studies import make

from harness.report.sweep_page import write_sweep

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    sweep = make(tmp_path_factory.mktemp("results") / "study")
    write_sweep(sweep)
    return sweep


@pytest.fixture(scope="module")
def browser(study, tmp_path_factory):
    """A browser that has opened the page; it keeps what the page logs and asks for."""
    with browsing(tmp_path_factory.mktemp("profile"), "400,800") as driver:
        driver.get((study / "report.html").as_uri())
        yield driver


def column(browser, title):
    """What the first table shows under a title, top to bottom; empty where it is hidden."""
    script = """
        const table = document.querySelector("table.sortable");
        const index = [...table.tHead.rows[0].cells].findIndex(
            cell => cell.offsetParent && cell.innerText.replace(/ [▲▼]/, "") === arguments[0]);
        return index < 0 ? [] : [...table.tBodies[0].rows].map(row => row.cells[index].innerText);
    """
    return browser.execute_script(script, title)


def click(browser, title):
    browser.execute_script(
        "[...document.querySelectorAll('table.sortable th button')].find(b => b.innerText === arguments[0]).click()",
        title,
    )


def test_the_page_logs_nothing_and_asks_the_network_for_nothing(browser):
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert any(address.endswith("report.html") for address in asked)
    assert [address for address in asked if not address.startswith(("file:", "data:"))] == []


def test_a_click_on_a_title_sorts_both_ways(browser):
    shown = column(browser, "certified error, %")
    click(browser, "standard error, %")
    ascending = [float(cell.split()[0]) for cell in column(browser, "standard error, %")]
    assert ascending == sorted(ascending) and len(set(ascending)) > 2
    click(browser, "standard error, %")
    assert [float(cell.split()[0]) for cell in column(browser, "standard error, %")] == ascending[::-1]
    click(browser, "#")
    assert column(browser, "certified error, %") == shown


def test_fractions_are_sorted_by_their_size(browser):
    assert browser.execute_script("return ['8/255', '1/16', '1/255', '64.5 ± 0.2'].map(number)") == pytest.approx(
        [8 / 255, 1 / 16, 1 / 255, 64.5]
    )


def test_published_rows_stay_below_those_of_a_reduced_profile_however_sorted(browser):
    shown = browser.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<table id=t><thead><tr><th></th></tr></thead><tbody>"
        "<tr><td>69.0</td></tr><tr><td>64.5</td></tr><tr class=last><td>35.4</td></tr></tbody></table>');"
        "const table = document.getElementById('t'), header = table.querySelector('th');"
        "return [0, 1].map(() => { sort(table, 0, header); return table.innerText.trim().split(/\\s+/); });"
    )
    assert shown == [["64.5", "69.0", "35.4"], ["69.0", "64.5", "35.4"]]
