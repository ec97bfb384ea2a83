"""`python -m harness.ui`: a store is served, its sweeps' links are printed, nothing runs on afterwards."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from urllib.request import urlopen

import pytest
from headless import CHROMIUM, DRIVER, browsing
from processes import alive, descendants, wait_for
from servers import answers, free_port

from harness.command_line import main
from harness.tracking import client as tracking_client


@contextmanager
def serve(study, port):
    """`harness.ui` of a study, and the link that it prints."""
    command = [sys.executable, "-m", "harness.ui", "tiny", "--tracking-uri", study.store, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "tiny:\n"
        yield process.stdout.readline().strip()
        started = [process.pid, *descendants(process.pid)]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    wait_for(lambda: not any(map(alive, started)), 30)


@pytest.mark.slow
def test_a_store_is_served_until_it_is_stopped(finished):
    port = free_port()
    with serve(finished, port) as link:
        assert link.startswith(f"http://127.0.0.1:{port}/#/experiments/")
        wait_for(lambda: answers(port), 120)
        with urlopen(link.partition("#")[0], timeout=30) as page:
            assert "MLflow" in page.read().decode()


_CHARTS = """
    return [...document.querySelectorAll(".js-plotly-plot")].map(plot => plot.getBoundingClientRect()).filter(
        box => box.width > 50 && box.height > 50 && box.bottom < innerHeight).length
"""


@pytest.mark.slow
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of selenium's
def test_the_link_opens_charts_of_final_errors_on_the_first_screen(finished, tmp_path):
    """As a person has it: a window of a laptop's size, MLflow's own panes open."""
    port = free_port()
    with serve(finished, port) as link, browsing(tmp_path / "profile", "1400,1000") as browser:
        wait_for(lambda: answers(port), 120)
        browser.get(link)
        wait_for(lambda: browser.execute_script(_CHARTS) >= 3, 120)
        text = browser.find_element("tag name", "body").text
    assert "certified_error" in text.partition("Final: of evaluated images")[2]
    assert "train/eps" not in text
    for run in finished.runs.values():
        assert run.info.run_name in text


def test_a_port_that_is_invalid_or_in_use_is_refused(capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        for port in (70000, server.getsockname()[1]):
            assert main("ui", ["--port", str(port)]) == 2
            assert f"--port: found {port}, allowed: a port that is free" in capsys.readouterr().err


def test_a_database_s_uri_goes_to_mlflow_by_its_environment_alone(finished, monkeypatch):
    """The list of processes must not show a password."""
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    main("ui", ["--tracking-uri", finished.store, "--port", str(free_port())])
    ((_, command, environment),) = started
    assert environment["MLFLOW_BACKEND_STORE_URI"] == finished.store
    assert not any("sqlite" in word for word in command)


def test_the_links_of_a_server_are_printed_and_nothing_is_served(finished, monkeypatch, capsys):
    client = tracking_client.open_store(finished.store)
    monkeypatch.setattr(tracking_client, "open_store", lambda uri: client)
    assert main("ui", ["--tracking-uri", "https://user:secret@server/mlflow"]) == 0
    printed = capsys.readouterr().out
    assert "tiny:\nhttps://user:***@server/mlflow/#/experiments/" in printed
    assert "Default" not in printed
