"""`python -m harness.ui`: a store is served, its sweeps' links are printed, nothing runs on afterwards."""

import re
import signal
import socket
import subprocess
import sys
from urllib.request import urlopen

import pytest
from processes import alive, descendants, wait_for

from harness.command_line import main
from harness.launch import ui


@pytest.mark.slow
def test_a_store_is_served_until_it_is_stopped(finished):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "harness.ui", "tiny", "--tracking-uri", finished.store, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout.readline() == "tiny:\n"
        link = served.stdout.readline().strip()
        assert re.fullmatch(rf"http://127\.0\.0\.1:{port}/#/experiments/\d+/runs\?viewStateShareKey=.*CHART", link)
        with urlopen(link.partition("#")[0], timeout=30) as page:
            assert "MLflow" in page.read().decode()
        started = descendants(served.pid)
        served.send_signal(signal.SIGINT)
        assert served.wait(60) == 0
    assert started
    wait_for(lambda: not any(map(alive, started)), 30)


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_port_that_is_none_is_refused(port, capsys):
    assert main("ui", ["--port", port]) == 2
    assert "--port" in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused_where_it_is_asked_for_and_left_where_not(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main("ui", ["--port", str(port)]) == 2
        assert "free" in capsys.readouterr().err
        monkeypatch.setattr(ui, "_PORT", port)
        assert ui._free_port(None) != port


def test_the_links_of_a_server_are_printed_and_nothing_is_served(finished, monkeypatch, capsys):
    from harness.launch import mlflow_client

    client = mlflow_client.read_store(finished.store)
    monkeypatch.setattr(mlflow_client, "read_store", lambda uri: client)
    monkeypatch.setattr(mlflow_client, "version_of", lambda uri: "3.9.0")
    assert main("ui", ["--tracking-uri", "https://user:secret@server/mlflow"]) == 0
    printed = capsys.readouterr().out
    assert "tiny:\nhttps://user:***@server/mlflow/#/experiments/" in printed
    assert "Default" not in printed
