"""An MLflow server on PostgreSQL, as a team would have one."""

import json
import re
import subprocess
import sys

import psycopg2
import pytest
from servers import SEEN, mlflow, postgres
from study import TINY, Study

from harness.storage import folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


def secrets_in(text):
    return [secret for secret in SEEN if secret in text]


@pytest.fixture
def database():
    """PostgreSQL's address."""
    with postgres() as store:
        yield store


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_server_on_postgresql_holds_what_the_folders_hold_and_no_password(
    database, tmp_path, tmp_path_factory, monkeypatch
):
    store, directory = database, tmp_path_factory.mktemp("server")
    with mlflow(directory, store, str(directory / "artifacts")) as uri:
        study = Study(tmp_path, TINY, uri)
        driver = study.start(cwd=tmp_path)
        out, err = driver.communicate(timeout=600)
        assert driver.returncode == 0, out + err
        study.assert_complete()
        for name, record in study.records.items():
            evaluation_dir, run = study.evaluation_dirs[name], study.runs[record.key]
            result = folder.read_result(evaluation_dir)
            finite = {name: value for name, value in result.metrics.items() if value is not None}
            assert finite.items() <= run.data.metrics.items()
            location = re.sub("^mlflow-artifacts:/", "", run.info.artifact_uri)
            stored = directory / "artifacts" / location / folder.RESULT
            assert stored.read_bytes() == (evaluation_dir / folder.RESULT).read_bytes()
    assert not secrets_in(out + err)

    # The same store without a server between: its password is in the command's environment, and nowhere else.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    command = [sys.executable, "-m", "harness.run", *study.options[:-2]]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 finished already" in again.stdout
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert not [path for path in written if secrets_in(path.read_bytes().decode(errors="replace"))]
    assert not secrets_in(again.stdout + again.stderr + json.dumps(_everything(store)))
    wrong = store.replace(SEEN[0], "not%2Dthe%2Done")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", wrong)
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert refused.returncode == 2
    assert "postgresql+psycopg2://bench:***@127.0.0.1" in refused.stderr and "not%2Dthe" not in refused.stderr
    assert not (tmp_path / "mlflow.db").exists()


def _everything(store):
    """All rows of all tables, as text."""
    with psycopg2.connect(store.replace("+psycopg2", "")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        tables = [name for (name,) in cursor.fetchall()]
        assert "metrics" in tables
        rows = {}
        for name in tables:
            cursor.execute(f'SELECT * FROM "{name}"')
            rows[name] = [list(map(str, row)) for row in cursor.fetchall()]
        return rows
