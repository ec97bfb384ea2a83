import entry_files
import pytest
from entry_files import Entry


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """An honest entry: a network of plain torch, written by torch's exporter, with certificates and witnesses."""
    folder = tmp_path_factory.mktemp("entry")
    network = entry_files.write_onnx(entry_files.plain(), folder / "network.onnx")
    entry_files.write(folder, *entry_files.verdicts_of(network))
    return folder


@pytest.fixture
def entry(original, tmp_path):
    return Entry(original, tmp_path)
