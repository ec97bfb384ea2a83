import pandas as pd
import pytest

from harness.storage import entry_check
from harness.storage.entry_check import CheckStep, EntryCheck, NetworkCheck, Reported
from harness.storage.files import DamagedFileError


def example() -> EntryCheck:
    reported = Reported(standard_error=51.87, certified_error=67.0, undecided=2.0)
    network = NetworkCheck(seed=0, parameters=9, reported=reported, claimed=1, sample=1, confirmed_by_verifier=1)
    return EntryCheck(
        name="mine", eps="8/255", images=1, status="unconfirmed", level="verifier", checker="0.1.0", date="2026-11-28",
        steps=[CheckStep(name="schema", passed=True, message="entry.yaml is complete")],
        networks=[network],
    )  # fmt: skip


def test_what_is_written_is_read(tmp_path):
    directory = entry_check.check_dir(tmp_path, "mine")
    verdicts = pd.DataFrame([[0, 0, 3, 3, "certified", 0.5, "bab", "ours", 1.0]], columns=entry_check.COLUMNS)
    entry_check.write_check(directory, example(), verdicts)
    assert entry_check.find_checks(tmp_path) == [directory]
    assert entry_check.read_check(directory) == example()
    pd.testing.assert_frame_equal(entry_check.read_checked_verdicts(directory), verdicts)
    entry_check.write_check(directory, example(), None)
    assert entry_check.read_checked_verdicts(directory) is None, "those of an earlier check would stand beside this one"


def test_a_check_of_another_form_is_refused(tmp_path):
    entry_check.write_check(tmp_path, example(), None)
    path = tmp_path / entry_check.CHECK
    path.write_text(path.read_text().replace('"unconfirmed"', '"perfect"', 1))
    with pytest.raises(DamagedFileError, match=r"check\.json"):
        entry_check.read_check(tmp_path)
