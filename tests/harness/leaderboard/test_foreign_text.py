"""Text of files that others wrote: it controls no terminal, and is no markup, command or formula in a table."""

import re

import markdown_it
import pandas as pd
import pytest
from made_networks import add, metrics, publish, text

from harness.command_line import main
from harness.common.terminal import new_console, print_table, say
from harness.leaderboard.files import csv_text, markdown_text
from harness.storage import folder
from harness.storage.lock import LOCK

CONTROLS = "\x1b]0;title\x07\x1b[2J\x9b31m\u202edlrow\u2066\r\nconfirmed [red]all[/red] :smile:"


def has_controls(shown):
    return any(not character.isprintable() for character in shown.replace("\n", ""))


@pytest.fixture
def hostile(sweep):
    """A sweep with such text wherever a file may have some."""
    path = add(sweep, metrics(), warnings=[CONTROLS], profile=CONTROLS, options={CONTROLS: CONTROLS})
    folder.write_choice(folder.network_of(path), {"text": CONTROLS, "search": "tpe-0"})
    add(sweep, metrics(), seed=1, model=CONTROLS, method=CONTROLS)
    add(sweep, failure=CONTROLS, seed=2)
    publish(sweep, f'cifar10,8/255,cnn7,"{CONTROLS}",20,"60","{CONTROLS}"\n')
    (sweep / LOCK).write_text('{"host": "\\u001b[2J", "process": 1, "since": 0}')
    return sweep


@pytest.mark.parametrize("options", [[], ["--status"], ["--compare"]])
def test_no_command_prints_control_characters(hostile, options, capsys):
    main("tables", [str(hostile), *options])
    printed = capsys.readouterr()
    shown = printed.out + printed.err
    assert shown and not has_controls(shown)
    assert options == ["--compare"] or ("\\x1b" in shown and "[red]all[/red]" in shown)
    for path in hostile.glob("leaderboard.*"):
        assert not has_controls(path.read_text())


def test_errors_name_files_without_control_characters(tmp_path, capsys):
    assert main("tables", [str(tmp_path / "\x1b[2J\u202e")]) == 2
    assert "\\x1b[2J\\u202e" in capsys.readouterr().err


def test_markup_stays_text(capsys):
    say("[red]x[/red] \x1b[1m:smile:\nsecond", 3)
    new_console().print("[red]x[/red] \x1b[1m:smile:\nsecond")
    lines = ["[red]x[/red] \\x1b[1m:smile:", "second"]
    assert capsys.readouterr().out.splitlines() == [*lines, "3", *lines]
    print_table(new_console(), ["t"], [["a\nb"]])
    assert "a\\nb" in capsys.readouterr().out


@pytest.mark.parametrize(
    "markup",
    [
        "[a](javascript:alert(1))", "![a](http://x)", "[a][b] [b]: javascript:x", "[b]: javascript:x", "**a**", "__a__",
        "_a_", "~~a~~", "<b>a</b>", "<javascript:x>", "\\[a](javascript:x)", "a|b", "[7, 9] snake_case 1 ~",
    ],
)  # fmt: skip
def test_markdown_shows_text_as_it_is(markup):
    html = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(f"- {markdown_text(markup)}")
    assert set(re.findall(r"<(\w+)", html)) == {"ul", "li"}
    assert html.replace("&lt;", "<").replace("&gt;", ">") == f"<ul>\n<li>{markup}</li>\n</ul>\n"


def test_latex_has_no_commands_of_others(sweep):
    add(sweep, metrics(), options={"a": "}\\input{/etc/passwd}\n\n%\\write18{x}"})
    main("tables", [str(sweep), "--latex"])
    assert not re.search(r"\\(input|write)", text(sweep, "tex"))


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@x"])
def test_a_spreadsheet_finds_no_formula(cell):
    frame = pd.DataFrame({"text": [cell, "a=b"], "number": [-1.5, 2.0]})
    assert csv_text(frame) == f"text,number\n'{cell},-1.5\na=b,2.0\n"
