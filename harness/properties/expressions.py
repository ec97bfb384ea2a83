"""The text of a VNN-LIB 1.0 file as nested lists: `(<= X_0 0.5)` is ["<=", "X_0", "0.5"]."""

import gzip
import re
import zlib
from pathlib import Path

from harness.errors import InputError, shorten

Expression = str | list["Expression"]

_TOKEN = re.compile(r"[()]|[^\s();]+|;[^\n]*|\n")
_DEEPEST = 100  # brackets inside brackets
_LARGEST = 2**30  # bytes of text


def read_text(path: Path) -> str:
    """Return the text of a file, unpacked if its name ends in .gz. Raises InputError if it cannot be read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise InputError(f"{path}: the text is too large, allowed: up to {_LARGEST} bytes")
        return content.decode()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8") from None


def parse(text: str) -> list[Expression]:
    """Return the expressions of a text. Comments begin with a semicolon.

    Raises InputError, with the line, if brackets do not match or something stands outside of them.
    """
    top: list[Expression] = []
    open_lists, opened, line = [top], [0], 1
    for token in _TOKEN.findall(text):
        if token == "\n":
            line += 1
        elif token == "(":
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
        elif not token.startswith(";"):
            if len(open_lists) == 1:
                raise InputError(f"line {line}: found {shorten(token)} outside of brackets")
            open_lists[-1].append(token)
    if len(open_lists) > 1:
        raise InputError(f"line {opened[-1]}: found an opening bracket without a closing one")
    return top


def to_text(expression: Expression) -> str:
    """Return an expression as in a file, cut off where it is long: for messages."""
    text = expression if isinstance(expression, str) else f"({' '.join(map(to_text, expression[:6]))})"
    return text if len(text) <= 100 else f"{text[:100]}..."
