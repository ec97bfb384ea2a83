"""The board as a reader has it: headless Chromium, where there is one with its driver."""

import json

import pytest
from headless import CHROMIUM, DRIVER, browsing
from made_studies import make
from test_board_page import SCRIPT, write_entry, write_papers

from harness.report.board_page import write_board

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    write_papers(
        results,
        "cifar10,8/255,CNN-7,SABR,50,65,yes,no,complete,1,B,https://example.org",
        "cifar10,8/255,CNN-7,IBP,49,66,yes,no,complete,,A,",
        "cifar10,8/255,SortNet,,5,9,no,no,Lipschitz,,C,",
        "mnist,0.3,CNN-7,SABR,2,6,yes,no,complete,,B,",
    )
    make(results / "study")
    write_entry(results, "honest", certified=64.0)
    write_entry(results, "liar", title=SCRIPT, status="refuted", certified=1.0)
    write_entry(results, "digits", dataset="digits", images=4)
    write_board(results, results / "index.html", str(results))
    return results / "index.html"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile"), "1400,900") as driver:
        yield driver


@pytest.fixture
def browser(driver, page):
    """The browser with the page opened anew."""
    driver.get(page.as_uri())
    yield driver
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def names(browser, dataset="CIFAR-10"):
    """The names of the visible rows of a data set's groups, a list for each group."""
    script = """
        return [...document.querySelectorAll("#rows tbody")].filter(body => !body.hidden && body.innerText.startsWith(arguments[0]))
          .map(body => [...body.querySelectorAll("tr.row")].filter(row => !row.hidden).map(row => row.querySelector("button").innerText))
    """  # noqa: E501
    return browser.execute_script(script, dataset)


def click(browser, selector, text):
    script = "[...document.querySelectorAll(arguments[0])].find(e => e.innerText.includes(arguments[1])).click()"
    browser.execute_script(script, selector, text)


def choose(browser, filter_name, value):
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("xpath", f"//label[starts-with(., '{filter_name}')]/select")).select_by_visible_text(
        value
    )


def test_the_page_logs_nothing_and_asks_the_network_for_nothing(browser):
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and all(address.startswith(("file:", "data:")) for address in asked)
    assert browser.execute_script("return document.querySelectorAll('#best .refuted, #best [onload]').length") == 0


def test_a_title_sorts_rows_within_their_groups_only(browser):
    assert names(browser) == [["honest", "CNN-7, SABR", "CNN-7, IBP", SCRIPT], ["SortNet"]]
    click(browser, "#rows thead button", "standard error")
    assert names(browser) == [["honest", SCRIPT, "CNN-7, IBP", "CNN-7, SABR"], ["SortNet"]]
    click(browser, "#rows thead button", "standard error")
    assert names(browser) == [["CNN-7, SABR", "CNN-7, IBP", "honest", SCRIPT], ["SortNet"]]
    headings = "return [...document.querySelectorAll('#rows th.group')].map(e => e.innerText.split(',')[2].trim())"
    click(browser, "button.by", "verifier")
    verifiers = browser.execute_script(headings)
    assert verifiers == sorted(verifiers, key=str.lower) and len(set(verifiers)) == 3


def test_filters_leave_the_rows_that_fit_all_of_them(browser):
    choose(browser, "data set", "CIFAR-10")
    choose(browser, "verifier", "complete")
    choose(browser, "made by", "paper")
    assert names(browser) == [["CNN-7, SABR", "CNN-7, IBP"]] and names(browser, "MNIST") == []
    assert browser.find_element("css selector", "output").text == "2 of 13 rows"
    choose(browser, "eps", "0.3")
    assert names(browser) == []


def test_a_row_opens_by_the_keyboard_to_its_figures(browser):
    button = browser.find_element("xpath", "//table[@id='rows']//button[.='digits']")
    detail = browser.find_element("id", button.get_attribute("aria-controls"))
    assert not detail.is_displayed()
    button.send_keys("\n")
    assert button.get_attribute("aria-expanded") == "true" and detail.is_displayed()
    assert detail.find_elements("css selector", "svg rect.certified") and "board check digits" in detail.text
    (picture,) = detail.find_elements("css selector", "img")
    assert browser.execute_script("return arguments[0].naturalWidth", picture) == 8
    button.send_keys(" ")
    assert not detail.is_displayed()


def test_a_name_on_the_first_screen_leads_to_its_row_whatever_is_filtered(browser):
    choose(browser, "data set", "MNIST")
    click(browser, "#best a", "SortNet")
    opened = "return [...document.querySelectorAll('#rows [aria-expanded=true]')].map(e => e.innerText)"
    assert browser.execute_script(opened) == ["SortNet"] and len(names(browser)) == 2


def test_the_page_fits_a_phone(browser):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    click(browser, "#rows button", "honest")
    wide = "return [...document.querySelectorAll('body, .wide')].map(e => e.scrollWidth - e.clientWidth)"
    assert max(browser.execute_script(wide)) <= 0
