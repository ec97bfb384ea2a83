"""Files that are not what they should be: bytes by what is wrong with them, one of each kind."""

import json


def of_bytes(good: bytes) -> dict[str, bytes]:
    """What may become of any file."""
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0x10
    return {
        "empty": b"",
        "its first half": good[: len(good) // 2],
        "all but its first bytes": good[9:],
        "a bit flipped": bytes(flipped),
        "zeros": b"\0" * len(good),
        "random bytes": bytes(range(256)) * 8,
        "a pickle": b"cos\nsystem\n(S'touch called'\ntR.",
    }


def jsons(good: dict) -> dict[str, bytes]:
    """JSON files that are none, or none of an object, made of one that is good."""
    text = json.dumps(good)
    files = {
        "empty": b"",
        "cut off": text.encode()[:-5],
        "nothing": b"null",
        "a list": b"[]",
        "a huge number": b"9" * 5000,  # more digits than Python makes an integer of
        "deep lists": b"[" * 100_000,
        "random bytes": bytes(range(256)),
    }
    return files | {
        f"without {name}": json.dumps({key: good[key] for key in good if key != name}).encode() for name in good
    }
