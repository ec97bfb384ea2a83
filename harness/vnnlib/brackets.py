"""The text of a VNN-LIB file as nested lists: `(<= X_0 0.5)` is ["<=", "X_0", "0.5"]."""

import re

from cerdeq.deadline import check as check_deadline
from harness.common.errors import InputError, shorten

Expression = str | list["Expression"]

_COMMENT = re.compile(r";[^\n]*")
_FOREIGN = re.compile(r"""[^!#-{}~ \t\n]""")  # also " and |, which quote spaces, brackets and semicolons in SMT-LIB
_TOKEN = re.compile(r"[()]|[^\s()]+|\n")
_DEEPEST = 100  # brackets inside brackets


def without_comments(content: bytes) -> str:
    r"""Return a text without its comments, line by line. A line, and a comment with it, ends at \n, \r or \r\n.

    Raises InputError, with the line, for anything but UTF-8, for a character that does not print, and outside of
    comments for any but those of ASCII without quotation marks and bars.
    """
    try:
        text = content.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"not a text file in UTF-8: {error.reason} at byte {error.start}") from None
    for comment in _COMMENT.finditer(text):
        for offset, character in enumerate("" if comment[0].isprintable() else comment[0]):
            if not character.isprintable() and character != "\t":
                _refuse_character(text, comment.start() + offset, "in a comment: characters that print")
    code = _COMMENT.sub("", text)
    if foreign := _FOREIGN.search(code):
        _refuse_character(code, foreign.start(), 'printable characters of ASCII without " and |')
    return code


def _refuse_character(text: str, position: int, allowed: str) -> None:
    line = text.count("\n", 0, position) + 1
    raise InputError(f"line {line}: found the character {text[position]!a}, allowed: {allowed}")


def parse(code: str) -> list[Expression]:
    """Return the expressions of a text without comments.

    Raises InputError, with the line, if brackets do not match or something stands outside of them.
    """
    top: list[Expression] = []
    open_lists, opened, line = [top], [0], 1
    for match in _TOKEN.finditer(code):
        token = match[0]
        if token == "\n":
            line += 1
        elif token == "(":
            check_deadline()
            if len(open_lists) > _DEEPEST:
                raise InputError(f"line {line}: found more than {_DEEPEST} brackets inside each other")
            inner: list[Expression] = []
            open_lists[-1].append(inner)
            open_lists.append(inner)
            opened.append(line)
        elif token == ")":
            if len(open_lists) == 1:
                raise InputError(f"line {line}: found a closing bracket without an opening one")
            open_lists.pop()
            opened.pop()
        elif len(open_lists) == 1:
            raise InputError(f"line {line}: found {shorten(token)} outside of brackets")
        else:
            open_lists[-1].append(token)
    if len(open_lists) > 1:
        raise InputError(f"line {opened[-1]}: found an opening bracket without a closing one")
    return top


def to_text(expression: Expression) -> str:
    """Return an expression as in a file, cut off where it is long: for messages."""
    text = expression if isinstance(expression, str) else f"({' '.join(map(to_text, expression[:6]))})"
    return text if len(text) <= 100 else f"{text[:100]}..."
