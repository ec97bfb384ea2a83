"""The command and the link that `harness.run` prints: MLflow serves the store, and the link opens charts."""

import os
import shlex
from contextlib import contextmanager

import pytest
from headless import CHROMIUM, DRIVER, browsing
from processes import wait_for
from servers import free_port, running

from harness.tracking.tracker import LOCAL_PAGE

_CHARTS = """
    return [...document.querySelectorAll(".js-plotly-plot")].map(plot => plot.getBoundingClientRect()).filter(
        box => box.width > 50 && box.height > 50 && box.bottom < innerHeight).length
"""


@contextmanager
def serve(study, log):
    """Run the printed command on a free port, without `uv run`; yield the printed link to that port."""
    command, link = study.out.splitlines()[-5:-3]
    port = free_port()
    words = [*shlex.split(command.removeprefix("uv run ")), "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(words, port, log, env=environment):
        yield link.replace(LOCAL_PAGE, f"http://127.0.0.1:{port}")


@pytest.mark.slow
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of selenium's
def test_the_link_opens_charts_of_final_errors_on_the_first_screen(finished, tmp_path):
    """As a person has it: a window of a laptop's size, MLflow's own panes open."""
    with serve(finished, tmp_path / "log") as link, browsing(tmp_path / "profile", "1400,1000") as browser:
        browser.get(link)
        wait_for(lambda: browser.execute_script(_CHARTS) >= 3, 120)
        text = browser.find_element("tag name", "body").text
    assert "certified error" in text.partition("Final: of evaluated images")[2]
    assert "train/eps" not in text
    for run in finished.runs.values():
        assert run.info.run_name in text
