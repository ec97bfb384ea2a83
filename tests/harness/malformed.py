"""Files that are not what they should be: bytes by what is wrong with them, one of each kind."""

import json

import yaml

VALUES = {
    "nothing": None,
    "a truth": True,
    "not a number": float("nan"),
    "text": "../../../elsewhere",
    "a list": [[1]],
}
"""Values of types that few settings have."""


def sweeps(base: dict) -> dict[str, bytes]:
    """Sweep files that must be refused, made of one that is taken."""
    text = yaml.safe_dump(base, sort_keys=False)

    def changed(**changes: object) -> str:
        return yaml.safe_dump(base | changes, sort_keys=False)

    def line(key: str, value: str) -> str:
        """The file with one of its keys written by hand."""
        return yaml.safe_dump({name: item for name, item in base.items() if name != key}) + f"{key}: {value}\n"

    texts = {
        "cut off": text[: text.index("train:") + 14],
        "an alias of itself": text + "resources: &x [*x]\n",
        "a key twice": text + "name: other\n",
        "a radius by nothing": line("eps", "1/0"),
        "a width that is not a number": line("width", ".nan"),
        "a huge seed": line("seeds", f"[{2**63}]"),
        "bytes for a name": line("name", "!!binary AAEC"),
        "a call": line("name", "!!python/object/apply:os.system ['true']"),
        "a control character": line("name", '"\\x1b[31mred"'),
        "a path for a name": changed(name="../../elsewhere"),
        "a name of 300 letters": changed(name="a" * 300),
        "a path for a model": changed(trials=[{"model": "../../cnn5", "method": "ibp"}]),
        "a number for an entry": changed(trials=[5]),
        "a list for a recipe": changed(train=[]),
        "an include of itself": changed(include="study.yaml"),
        "two documents": f"{text}---\n{text}",
    }
    files = {name: content.encode() for name, content in texts.items()}
    return files | {"empty": b"", "random bytes": bytes(range(256)) * 16, "UTF-16": text.encode("utf-16")}


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
    files |= {f"without {name}": json.dumps({key: good[key] for key in good if key != name}).encode() for name in good}
    return files | changes(good)


def changes(content: dict, *keys: str) -> dict[str, bytes]:
    """JSON files with each value below some keys replaced by values of other types."""
    cases = {}
    section = content
    for key in keys:
        section = section[key]
    for name, right in list(section.items()):
        for what, value in VALUES.items():
            section[name] = value
            cases[f"{'.'.join([*keys, name])}: {what}"] = json.dumps(content).encode()
        section[name] = right
    return {what: text for what, text in cases.items() if json.loads(text) != content}
