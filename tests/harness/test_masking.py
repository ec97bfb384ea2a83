"""Secrets of addresses are in no message, log or file."""

import logging

import pytest

from harness.command_line import main
from harness.common.errors import InputError
from harness.common.masking import mask_secrets
from harness.storage import folder
from harness.storage.training_progress import log_to_folder

HIDDEN = {
    "http://user:pa55@host:5000/": "http://user:***@host:5000/",
    "http://user:pa55@word@host/": "http://user:***@host/",
    "postgresql+psycopg2://me:pa55/x@db:5432/mlflow": "postgresql+psycopg2://me:***@db:5432/mlflow",
    "https://pa55-as-a-name@host/path": "https://***@host/path",
    "s3://bucket/x?access_key=pa55&scheme=https&secret_key=pa55": "s3://bucket/x?access_key=***&scheme=https&secret_key=***",
    "postgresql://me:12345/pa55@db:5432/mlflow": "postgresql://me:***@db:5432/mlflow",
    "https://host/x?sas=pa55#access_token=pa55": "https://host/x?sas=***#access_token=***",
    "Authorization: Basic pa55": "Authorization: Basic ***",
    "host=db password=pa55 user=me": "host=db password=*** user=me",
    r"host=db password='pa55 \'wo rd' user=me": "host=db password=*** user=me",
    "s3://AKIA:pa55/+x@bucket/x?endpoint_override=host": "s3://AKIA:***@bucket/x?endpoint_override=host",
    "https://account.blob/x?sv=1&sig=pa55": "https://account.blob/x?sv=1&sig=***",
    "mysql://host/db?user=me&password=pa55;x": "mysql://host/db?user=me&password=***;x",
    "refused: Authorization: Bearer pa55": "refused: Authorization: Bearer ***",
    "'http://a:pa55@b' and http://c:pa55@d": "'http://a:***@b' and http://c:***@d",
}
PLAIN = [
    "http://host:5000/#/experiments/1/runs?viewStateShareKey=comparison&compareRunsMode=CHART",
    "models:/cifar10@best", "sqlite:////home/me@work/mlflow.db", "s3://bucket/results/x.json", "http://host:5000/a@b",
    "postgresql://db:5432/mlflow", "Basic training of a network",
]  # fmt: skip


def test_secrets_are_hidden_and_the_rest_is_unchanged():
    for text, masked in (HIDDEN | dict(zip(PLAIN, PLAIN, strict=True))).items():
        assert mask_secrets(text) == mask_secrets(masked) == masked


URI = "postgresql://me:pa55@db/mlflow"


@pytest.mark.parametrize("error", [InputError(f"{URI} is not there"), OSError(5, "broken", URI)])
def test_a_command_prints_no_secrets(monkeypatch, capsys, error):
    def fail(_options):
        raise error

    monkeypatch.setattr("harness.tables.main", fail)
    assert main("tables", ["here"]) in (1, 2)
    captured = capsys.readouterr()
    assert "pa55" not in captured.out + captured.err
    assert "postgresql://me:***@db/mlflow" in captured.err


def test_files_of_results_have_no_secrets(tmp_path):
    folder.write_failure(tmp_path, f"OSError: {URI} is not there")
    with pytest.raises(RuntimeError), log_to_folder(tmp_path):
        logging.getLogger("harness.x").info("asking %s", URI)
        raise RuntimeError(URI)
    for name in (folder.FAILURE, folder.LOG):
        text = (tmp_path / name).read_text()
        assert "me:***@db" in text and "pa55" not in text


@pytest.mark.parametrize("key", ["../../elsewhere", "/tmp/elsewhere", "a/b", "..", "", "a\n"])
def test_a_key_does_not_lead_out_of_the_directory(tmp_path, key):
    with pytest.raises(InputError, match="key"):
        folder.network_dir(tmp_path, key)
