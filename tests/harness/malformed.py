"""Files that are not what they should be: bytes by what is wrong with them."""

import json

import yaml

HUGE = "9" * 5000  # more digits than Python makes an integer of


def sweeps(base: dict) -> dict[str, bytes]:
    """Sweep files that must be refused, made of one that is taken."""
    text = yaml.safe_dump(base, sort_keys=False)

    def with_(**changes: object) -> str:
        return yaml.safe_dump(base | changes, sort_keys=False)

    def line(key: str, value: str) -> str:
        """The file with one of its keys written by hand."""
        return yaml.safe_dump({name: item for name, item in base.items() if name != key}) + f"{key}: {value}\n"

    texts = {
        "cut off in a mapping": text[: text.index("train:") + 14],
        "cut off in a list": text[: text.index("- 0") + 2] + "[",
        "an alias of itself": text + "resources: &x [*x]\n",
        "an alias of nothing": text + "resources: *nothing\n",
        "a key twice": text + "name: other\n",
        "a key twice as number and text": line("resources", "{cpu: 1, 'cpu': 1}"),
        "merge of what is no mapping": line("train", "{<<: 5}"),
        "a radius by nothing": line("eps", "1/0"),
        "a radius that is not a number": line("eps", ".nan"),
        "a width that is not a number": line("width", ".nan"),
        "a huge seed": line("seeds", f"[{2**63}]"),
        "a day that is none": line("name", "2026-02-31"),
        "text that is no integer": line("train_images", "!!int five"),
        "bytes for a name": line("name", "!!binary AAEC"),
        "a set for seeds": line("seeds", "!!set {0, 1}"),
        "pairs for a recipe": line("train", "!!omap [epochs: 4]"),
        "a call": line("name", "!!python/object/apply:os.system ['true']"),
        "an unknown tag": line("name", "!mine x"),
        "null bytes": line("name", '"a\\0b"'),
        "a control character": line("name", '"\\x1b[31mred"'),
        "a path for a name": with_(name="../../elsewhere"),
        "a name of 300 letters": with_(name="a" * 300),
        "a name that is a number": with_(name=5),
        "a path for a model": with_(trials=[{"model": "../../cnn5", "method": "ibp"}]),
        "a list for a model's name": with_(trials=[{"model": [["cnn5"]], "method": "ibp"}]),
        "a mapping for a method": with_(trials=[{"model": "cnn5", "method": {"ibp": 1}}]),
        "text for trials": with_(trials="cnn5"),
        "a number for an entry": with_(trials=[5]),
        "no trials": with_(trials=[]),
        "a grid of a million": with_(trials=[{"model": "cnn5", "method": "ibp", "train": _grid()}]),
        "text for seeds": with_(seeds="0"),
        "a list for a recipe": with_(train=[]),
        "a number for a profile": with_(profiles={"cpu": 3}),
        "a list of includes": with_(include=["a.yaml"]),
        "an include of itself": with_(include="study.yaml"),
        "two documents": f"{text}---\n{text}",
        "JSON cut off": json.dumps(base)[:-3],
    }
    files = {name: content.encode() for name, content in texts.items()}
    plain = text.encode()
    return files | {
        "empty": b"",
        "a mark and nothing": b"\xef\xbb\xbf",
        "random bytes": bytes(range(256)) * 16,
        "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "UTF-16": text.encode("utf-16"),
        "UTF-32": text.encode("utf-32"),
        "Latin-1": b"# gr\xf6\xdfer\n" + plain,
        "UTF-8 cut off": plain + "# größe".encode()[:-2],
        "zeros": b"\0" * 4096,
    }


def _grid() -> dict[str, list[int]]:
    return {name: list(range(100)) for name in ("epochs", "batch_size", "ramp_epochs")}


def of_bytes(good: bytes) -> dict[str, bytes]:
    """What may become of any file."""
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0x10
    return {
        "empty": b"",
        "its first half": good[: len(good) // 2],
        "all but its last bytes": good[:-9],
        "all but its first bytes": good[9:],
        "a bit flipped": bytes(flipped),
        "zeros": b"\0" * len(good),
        "random bytes": bytes(range(256)) * 8,
        "text": b"nothing of the kind\n",
        "a pickle": b"cos\nsystem\n(S'touch called'\ntR.",
    }


def jsons(good: dict) -> dict[str, bytes]:
    """JSON files that are none, or none of an object, made of one that is good."""
    text = json.dumps(good)
    texts = {
        "nothing": "null",
        "a list": "[]",
        "a list of pairs": "[[1, 2]]",
        "a number": "5",
        "not a number": "NaN",
        "a huge number": HUGE,
        "text instead": '"text"',
        "an empty object": "{}",
        "deep lists": "[" * 100_000,
        "two of them": text + text,
        "a surrogate": '"\\ud800"',
    }
    files = {name: content.encode() for name, content in texts.items()}
    files |= {f"its {name} {what}": json.dumps(good | {name: value}).encode()
              for name in good for what, value in VALUES.items() if value != good[name]}  # fmt: skip
    files |= {f"without {name}": json.dumps({key: good[key] for key in good if key != name}).encode() for name in good}
    return files | {
        "empty": b"",
        "cut off": text.encode()[:-5],
        "UTF-16": text.encode("utf-16"),
        "random bytes": bytes(range(256)),
    }


VALUES = {
    "nothing": None,
    "a truth": True,
    "a number": -1,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "text": "../../../elsewhere",
    "a list": [[1]],
    "an object": {"a": {"b": []}},
}
