"""`python -m harness.recheck` on a sweep in which one thing is not true or one file damaged: what it says."""

import json
import shutil

import lies_in_folders
import lies_in_tensors
import lies_in_verdicts
import numpy as np
import pytest
import torch
from lies_in_folders import CSV, DATA
from lying_sweep import Sweep, change_config, change_metrics, change_row, change_tensors, make_sweep

from harness.checker import evaluation
from harness.command_line import FAILED, OK, main
from harness.common import names
from harness.data import load
from harness.leaderboard.files import leaderboard_files
from harness.machine.environment import cache_directory
from harness.storage import folder

LIES = lies_in_folders.LIES | lies_in_verdicts.LIES | lies_in_tensors.LIES
CONFIRMED = "every verdict is confirmed"


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """The sweep and the cache of its data."""
    load("digits")
    return make_sweep(tmp_path_factory.mktemp("honest") / "study"), cache_directory()


@pytest.fixture
def sweep(honest, tmp_path, monkeypatch):
    """A copy of it, with a cache of data of its own; the working directory and the import path lead to it."""
    original, cache = honest
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(cache, cache_directory(), ignore=lambda _, files: [f for f in files if not f.startswith("digits-")])
    copy = Sweep(original.root, dict(original.folders)).copy(tmp_path / "study")
    monkeypatch.syspath_prepend(copy.root)
    monkeypatch.chdir(copy.root)
    return copy


@pytest.fixture(scope="module")
def results():
    """Results of folders in which nothing was changed, by their content."""
    return {}


@pytest.fixture
def remembered(results, monkeypatch):
    """Recheck folders that are as they were once only: a lie changes one of them."""
    recheck = evaluation.recheck

    def remember(verdict_dir, *arguments):
        network_dir = folder.network_of(verdict_dir)
        files = [*verdict_dir.glob("*"), *network_dir.glob("*.json"), *network_dir.glob("w*")]
        key = (verdict_dir.name, *((path.name, path.is_file() and path.read_bytes()) for path in sorted(files)))
        if key in results:
            return results[key]
        result = recheck(verdict_dir, *arguments)
        if result.is_confirmed:
            results[key] = result
        return result

    monkeypatch.setattr(evaluation, "recheck", remember)


def recheck(sweep, capsys, *options):
    """Return exit status and output."""
    status = main("recheck", [str(sweep.root), *options])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def tell(lie, sweep):
    """Change the sweep; a lie in no leaderboard needs none."""
    lie.change(sweep)
    if lie.says != CSV:
        for path in leaderboard_files(sweep.root):
            path.unlink()


@pytest.fixture
def bare(sweep):
    """The copy without a leaderboard."""
    for path in leaderboard_files(sweep.root):
        path.unlink()
    return sweep


def lines_of(lie, sweep, output):
    """Return the lines that say it of whom the lie is about, by label, or by key where there is none."""
    starts = {"": lie.says, "key": f"{sweep.network.name}, ", "cerdeq": "cerdeq ibp "}
    lines = [
        line for line in output.splitlines() if line.startswith(starts.get(lie.of, "cnn5 ibp ")) and lie.says in line
    ]
    of = {"certified": ", ibp > crown-ibp > bab (60 branches), ", "none": f", {sweep.cnn5.name}: "}
    return [line for line in lines if of.get(lie.of, "") in line]


def test_the_truth_is_confirmed(sweep, capsys):
    """By whatever name the directory is called, and whatever hidden files lie in it."""
    renamed = Sweep(sweep.root.rename(sweep.root.with_name("from elsewhere")), sweep.folders)
    (renamed.root / "networks/.DS_Store").write_bytes(b"")
    status, output = recheck(renamed, capsys)
    assert status == OK and output.splitlines()[-1] == CONFIRMED, output


def test_images_that_could_not_be_bounded_claim_nothing(sweep, capsys, remembered):
    no_claim = {"margin_ibp": np.nan, "margin_crown__ibp": np.nan, "margin_alpha__crown": np.nan}
    change_row(names.UNKNOWN, verdict=names.MISCLASSIFIED, stage="clean", prediction=-1, **no_claim)(sweep)
    change_row(names.UNKNOWN, **no_claim)(sweep)
    status, output = recheck(sweep, capsys, "--only", "*")
    assert status == OK and output.splitlines()[-1] == "every verdict of the selected networks is confirmed", output


def assert_named(sweep, path, status, output, what):
    """Assert that a line names the file, in the folder of its network, and that the other network is confirmed."""
    lines = [line for line in output.splitlines() if sweep.network.name in line or line.startswith("cnn5 ibp")]
    assert status == FAILED and any(path.name in line for line in lines), (what, output[:3000])
    assert ": of 17 certified by ibp, confirmed: 17 by ibp" in output and max(map(len, lines)) < 6000, what


JSON_FILES = {folder.TRAINING: "network", folder.RESULT: "cnn5", folder.EVALUATION: "cnn5"}
NOT_OBJECTS = ("null", "true", "[]", "9" * 5000, "[" * 100_000, "", '{"key": "')
VALUES = (None, True, [[1]], "text", 10**4000, {"certified_error": float("nan")}, {"certified_error": [1]})
# No verdict depends on these.
NOT_READ = ("recipe_version 1", "version 1", "taken_over ", "verdicts text")


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_files_that_are_none_are_named(name, bare, capsys, remembered):
    """A fifth of the values for each key: `tests/harness/test_malformed_files.py` has all, by another command."""
    path = getattr(bare, JSON_FILES[name]) / name
    content = json.loads(path.read_text())
    texts = {text[:9]: text for text in NOT_OBJECTS}
    pairs = [(key, value) for key in content for value in VALUES]
    for key, value in pairs[::5]:
        texts[f"{key} {value}"[:90]] = json.dumps(content | {key: value})
    for what, text in texts.items():
        if not (what.startswith(NOT_READ) or "data {'certified_error': [" in what):
            path.write_text(text)
            assert_named(bare, path, *recheck(bare, capsys), what)


BINARY_FILES = (folder.VERDICTS, folder.WEIGHTS, folder.COUNTEREXAMPLES, folder.CERTIFICATES)


@pytest.mark.parametrize("name", BINARY_FILES)
def test_damaged_files_are_named(name, bare, capsys, remembered):
    path = (bare.network if name == folder.WEIGHTS else bare.cnn5) / name
    good = path.read_bytes()
    contents = {"empty": b"", "its first half": good[: len(good) // 2], "zeros": bytes(len(good)), "text": b"text" * 99}
    for what, content in contents.items():
        path.write_bytes(content)
        assert_named(bare, path, *recheck(bare, capsys), what)
    for position in range(0, len(good), len(good) // 5 + 1):  # a flipped byte may be of what no verdict depends on
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x55]) + good[position + 1 :])
        status, output = recheck(bare, capsys)
        assert status in (OK, FAILED) and ": of 17 certified by ibp, confirmed: 17 by ibp" in output, position
    path.unlink()
    path.mkdir()
    assert_named(bare, path, *recheck(bare, capsys), "a folder")


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("name", [folder.COUNTEREXAMPLES, folder.CERTIFICATES])
def test_tensors_that_numpy_does_not_have_are_named(name, dtype, bare, capsys, remembered):
    change_tensors(name, lambda tensors: {key: tensor.to(dtype) for key, tensor in tensors.items()})(bare)
    status, output = recheck(bare, capsys)
    assert status == FAILED and ": of 17 certified by ibp, confirmed: 17 by ibp" in output
    assert name in output or "expected float64" in output or "certificate refused" in output


def test_a_leaderboard_that_cannot_be_made_is_named(sweep, capsys, remembered):
    (sweep.network / folder.CHOSEN).write_text('{"text": [[1]]}')
    status, output = recheck(sweep, capsys)
    assert status == FAILED and ": of 17 certified by ibp, confirmed: 17 by ibp" in output
    assert "leaderboard" in output


def test_text_of_files_hides_nothing(bare, capsys, remembered):
    change_config(method=f"ibp\x1b[2K\n{CONFIRMED}")(bare)
    change_metrics(certified_error=0.0)(bare)
    status, output = recheck(bare, capsys)
    assert status == FAILED and "\x1b" not in output
    assert not any(line.startswith(CONFIRMED) for line in output.splitlines())


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_named_and_the_others_are_checked(name, sweep, capsys, request):
    lie = LIES[name]
    if lie.says != DATA:
        request.getfixturevalue("remembered")
    tell(lie, sweep)
    status, output = recheck(sweep, capsys)
    assert status == FAILED and lines_of(lie, sweep, output), output
    assert CONFIRMED not in output and "the liar has run" not in output
    if not lie.of.startswith("cerdeq") and lie.says not in (DATA, CSV):
        assert ": of 17 certified by ibp, confirmed: 17 by ibp" in output
