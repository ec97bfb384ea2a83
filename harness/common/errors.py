"""Errors of user input, how errors are shown, and a stop that is no error."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

_MOST_WORDS = 40


class InputError(ValueError):
    """Wrong input. Commands print the message and exit with 2: what was found, where, and what is allowed."""


class SettingError(InputError):
    """A setting that cannot be used: which key, what was found and what is allowed."""

    def __init__(self, key: str, found: object, allowed: str):
        super().__init__(f"{key}: found {shorten(found)}, allowed: {allowed}")
        self.key, self.found, self.allowed = key, found, allowed


class Stopped(BaseException):
    """A signal has ended the work. The same command goes on with it: no error, and so no Exception."""

    def __init__(self, signal: int):
        super().__init__(signal)
        self.signal = signal


def require(key: str, value: object, holds: bool, allowed: str) -> None:
    """Raise SettingError unless `holds`."""
    if not holds:
        raise SettingError(key, value, allowed)


Location = Callable[..., AbstractContextManager[None]]
"""Takes the start and end of lines about a part of the input; within, an InputError ends the block and is collected."""


@contextmanager
def collect_problems() -> Iterator[Location]:
    """Yield a Location. After the block, raise InputError with a line for each problem, if there are any."""
    lines = dict[str, None]()

    @contextmanager
    def at(start: str, end: str = "") -> Iterator[None]:
        try:
            yield
        except InputError as error:
            lines.update(dict.fromkeys(f"{start}{line}{end}" for line in str(error).splitlines()))

    yield at
    if lines:
        raise InputError("\n".join(lines))


@contextmanager
def located(start: str, end: str = "") -> Iterator[None]:
    """Within, put where the input is, such as "study.yaml: ", before each line of an InputError, and `end` after it."""
    with collect_problems() as at, at(start, end):
        yield


def shorten(value: object) -> str:
    """Return the value's repr for a message, at most 300 characters of it."""
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def error_line(error: BaseException) -> str:
    """Return an error's type and message in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def describe_error(error: BaseException) -> str:
    """Return an error in a line, with its type unless its message is written for users."""
    return " ".join(str(error).split()) if isinstance(error, InputError) else error_line(error)


def first_words(error: BaseException) -> str:
    """Return the start of an error's message as one line, without torch's advice to search the web.

    Its first line alone may name no cause.
    """
    return " ".join(str(error).partition("Search for")[0].split()[:_MOST_WORDS])
