"""Hide the secrets of addresses in whatever is printed, logged or stored."""

import re

_WORDS = r"password|passwd|pwd|token|secret|signature|credential|(?:access|api|account|private)[_-]?key"
_SECRET = rf"(?:[\w.-]*(?:{_WORDS})[\w.-]*|sig|sas|auth|authorization|pass|key)"
_DATABASES = r"(?:postgres|mysql|mariadb|mssql|oracle|redis|mongodb)[\w.+-]*"  # no path of theirs has an @
_MASKS = (
    (re.compile(r"(://[^/@\s:]*):(?!\d+/)[^\s'\"]*@"), r"\1:***@"),  # to the last @, since passwords may have one
    (re.compile(rf"(\b{_DATABASES}://[^/@\s:]*):[^\s'\"]*@"), r"\1:***@"),
    (re.compile(r"://[^/@\s:'\"]+@"), "://***@"),  # a name alone may be a token
    (re.compile(rf"([?&;#]{_SECRET}=)[^&;\s'\"#]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"(\b(?:Bearer|Authorization: *\w+) )\S+", re.IGNORECASE), r"\1***"),
    (re.compile(r"(\bpassword=)(?:'(?:\\.|[^'])*'|[^&;\s'\"]+)", re.IGNORECASE), r"\1***"),  # of libpq
)


def mask_secrets(text: str) -> str:
    """Return the text with the passwords and tokens of addresses replaced by ***."""
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    return text
