"""All that commands print in a terminal: lines, tables, and long text cut to one line."""

import codecs
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from textwrap import shorten
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

WIDTH = 500  # characters a line, where the output is a file or a pipe
LONGEST_LINE = 160
LINE_SECONDS = 30.0
"""How long after a line about what is done the next one comes."""


class _Console(Console):
    """A console on which no text but a command's own is markup, and none controls the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as it is shown."""
        return super().render_str(printable_lines(text), **options)


def _readable(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for characters that an encoding lacks, and where text goes on."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return lacking.replace("±", "+-").encode("ascii", "replace").decode(), error.end


codecs.register_error("readable", _readable)


def replace_unprintable() -> None:
    """Make standard output and error replace what the terminal's encoding lacks, such as ± by +-."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="readable")


def new_console() -> Console:
    """Return a console on standard output, which breaks no lines of text: paths can be copied."""
    console = _Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    return console


def say(*texts: object, file: TextIO | None = None) -> None:
    """Print plain texts, a line each, by default on standard output."""
    print(*(printable_lines(str(text)) for text in texts), sep="\n", file=file, flush=True)


@contextmanager
def announced(text: str) -> Iterator[None]:
    """Print what the block does, and again every half a minute until it ends."""
    began = time.monotonic()
    say(text)
    with repeated(lambda: say(f"{text} (since {time.monotonic() - began:.0f} s)"), LINE_SECONDS):
        yield


@contextmanager
def repeated(action: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function again and again while the block runs, from a thread of its own."""
    has_ended = threading.Event()

    def repeat() -> None:
        while not has_ended.wait(seconds):
            with suppress(OSError):  # a closed pipe, which the next line of the command itself meets
                action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


def make_table(titles: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str] = ()) -> Table:
    """Return the table that all commands print.

    rows: plain text, nothing in it is markup. styles: of each row, such as "italic"; none by default.
    """
    columns = [Column(title, overflow="fold") for title in titles]
    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, cells in enumerate(rows):
        table.add_row(*(Text(printable(cell)) for cell in cells), style=styles[number] if styles else None)
    return table


def print_table(
    console: Console, titles: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str] = ()
) -> None:
    """Print rows of text under their titles."""
    console.print(make_table(titles, rows, styles), soft_wrap=False)


def percent(value: float | None) -> str:
    """Return an error as text; None stands for one that is not finite."""
    return "not finite" if value is None else f"{value:.2f} %"


def with_plural(count: float, noun: str) -> str:
    """Return a number and what it counts: "1 instance", "2 instances", "3 branches", "0.5 GPUs"."""
    number = f"{count:g}" if isinstance(count, float) else count
    return f"{number} {noun}{'' if count == 1 else 'es' if noun.endswith('ch') else 's'}"


def printable(text: str) -> str:
    """Return text of files that others wrote, with control characters escaped: they could hide what else is printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Return text of several lines, each as `printable` does."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(text: str) -> str:
    """Return the text on one line, its end cut off where it is long."""
    return shorten(text, LONGEST_LINE, placeholder=" ...")
