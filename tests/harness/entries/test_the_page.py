"""The script of docs/enter-the-board.md makes an entry that passes."""

import re
from pathlib import Path

from harness.command_line import main
from harness.storage import entry_check

PAGE = Path(__file__).parents[3] / "docs/enter-the-board.md"


def test_the_script_makes_an_entry_that_passes(tmp_path, monkeypatch):
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, str(PAGE), "exec"), {})
    assert main("board", ["check", "my-entry"]) == 0
    check = entry_check.read_check(entry_check.check_dir(Path("results"), "my-entry"))
    assert (check.status, check.images, check.networks[0].sample) == ("checked", 360, 300)
    assert check.networks[0].checked.certified_error == check.networks[0].reported.certified_error < 25
