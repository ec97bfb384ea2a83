"""What a user asked for and cannot have."""


class InputError(ValueError):
    """The message is for the user: what was found, where, and what is allowed. Commands print it and exit with 2."""


class SettingError(InputError):
    """A setting that cannot be used: which key, what was found and what is allowed."""

    def __init__(self, key: str, found: object, allowed: str):
        super().__init__(f"{key}: found {shown(found)}, allowed: {allowed}")
        self.key, self.found, self.allowed = key, found, allowed


def require(key: str, value: object, holds: bool, allowed: str) -> None:
    """Raise SettingError unless `holds`."""
    if not holds:
        raise SettingError(key, value, allowed)


def shown(value: object) -> str:
    """What was found, as messages have it: long values cut off."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


_LONGEST = 300
