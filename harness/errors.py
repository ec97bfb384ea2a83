"""What a user asked for and cannot have."""


class InputError(ValueError):
    """The message is for the user: what was found, where, and what is allowed. Commands print it and exit with 2."""


class SettingError(InputError):
    """A setting that cannot be used: which key, what was found and what is allowed."""

    def __init__(self, key: str, found: object, allowed: str):
        super().__init__(f"{key}: found {found!r}, allowed: {allowed}")
        self.key, self.found, self.allowed = key, found, allowed


def require(key: str, value: object, holds: bool, allowed: str) -> None:
    """Raise SettingError unless `holds`."""
    if not holds:
        raise SettingError(key, value, allowed)
