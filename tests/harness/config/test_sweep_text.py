"""A sweep file as text: what is no YAML mapping is refused, and YAML's numbers arrive as numbers."""

import json
import time
from pathlib import Path

import pytest
import yaml
from small_sweep import BASE, changed, load_sweep, trainings_of, write

from harness.common.errors import InputError

TEXTS = {
    "empty": ("", "found nothing, allowed: a mapping"),
    "no YAML": ("name: [unclosed\n", "is not YAML: while parsing a flow sequence in line 1, column 7"),
    "a key twice": (
        "name: x\ntrain: {epochs: 3, epochs: 4}\n",
        "is not YAML: key 'epochs' appears twice in line 2, column 20",
    ),
    "a Python object": ("name: !!python/object/apply:os.system ['true']\n", "is not YAML: "),
    "an integer without digits": ('name: !!int ""\n', "is not YAML: it has "),
    "a date as a key": (yaml.safe_dump(BASE) + "2026-11-20: x\n", "2026-11-20: unknown key"),
    "an alias of itself": (yaml.safe_dump(BASE) + "resources: &x [*x]\n", "is not YAML: "),
    "bytes for a name": (yaml.safe_dump(changed(remove=["name"])) + "name: !!binary AAEC\n", "name: found "),
    "two documents": (2 * f"{yaml.safe_dump(BASE)}---\n", "is not YAML: "),
    "random bytes": (bytes(range(256)) * 16, "cannot be read: "),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_is_no_sweep_is_refused(refused, tmp_path, case):
    text, message = TEXTS[case]
    path = write(tmp_path, text if isinstance(text, str) else "")
    if isinstance(text, bytes):
        path.write_bytes(text)
    assert f"{path}: {message}" in refused(path)


NINE = "[{}]".format(", ".join(["*{0}"] * 9))
BOMBS = {
    "aliases of aliases": "x: &a0 [1]\n" + "".join(f"x{i}: &a{i} {NINE.format(f'a{i - 1}')}\n" for i in range(1, 9)),
    "merge keys of merge keys": "x: &a0 {k: 1}\n"
    + "".join(f"x{i}: &a{i} {{<<: {NINE.format(f'a{i - 1}')}, k{i}: 1}}\n" for i in range(1, 9)),
    "deep lists": "x: " + "[" * 20_000 + "]" * 20_000,
    "deep mappings": "x: " + "{a: " * 3_000 + "1" + "}" * 3_000,
    "a long list": f"x: [{'1,' * 1_000}1]",
    "a long text": "x: 1\n" * 200_001,
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_text_that_would_become_large_is_refused_before_it_does(tmp_path, monkeypatch, case):
    monkeypatch.setattr("harness.config.yaml_text._MOST_VALUES", 1_000)
    path = write(tmp_path, BOMBS[case])
    with pytest.raises(InputError, match=r"study\.yaml: is not YAML: it (has|is longer than) "):
        load_sweep(path, None, True)


HOSTILE = {
    "NUL": ('include: "a\\0b"', "study.yaml: is not YAML: it has a NUL or half a surrogate pair"),
    "half a surrogate pair": ('include: "\\ud800"', "study.yaml: is not YAML: it has a NUL or half a surrogate pair"),
    "half a pair as a key": ('"\\udfff": 1', "study.yaml: is not YAML: it has a NUL or half a surrogate pair"),
    "links in a circle": ("include: circle.yaml", "study.yaml: include: found 'circle.yaml', allowed: the relative"),
    "links in a circle of directories": ("include: circle.yaml/a.yaml", "study.yaml: include: found 'circle.yaml/a"),
    "a long name": (f"include: {'a' * 3000}", "cannot be read: File name too long"),
    "a long path": (f"include: {'a/' * 1900}a", "cannot be read: "),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_name_that_names_no_file_is_one_line(refused, tmp_path, case):
    text, message = HOSTILE[case]
    (tmp_path / "circle.yaml").symlink_to("circle.yaml")
    found = refused(write(tmp_path, f"{text}\n"))
    assert message in found and len(found.splitlines()) == 1


@pytest.mark.parametrize("name", ["circle.yaml", "circle.yaml/study.yaml", "a" * 300, "a\udc80"])
def test_a_sweep_file_whose_name_names_no_file_is_one_line(refused, tmp_path, name):
    (tmp_path / "circle.yaml").symlink_to("circle.yaml")
    found = refused(tmp_path / name)
    assert "cannot be read: " in found and len(found.splitlines()) == 1


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "a" * 300])
@pytest.mark.parametrize("key", ["checkpoint", "model", "plugins"])
def test_a_value_that_names_no_file_is_one_line(refused, tmp_path, key, text):
    (tmp_path / "circle").symlink_to("circle")
    path = write(tmp_path, "")
    entry = {"model": "cnn5", "checkpoint": text} if key == "checkpoint" else {"model": text, "method": "ibp"}
    plugins = {"plugins": [text]} if key == "plugins" else {}
    content = {**BASE, "trials": BASE["trials"] if plugins else [entry], **plugins}
    path.write_text(json.dumps(content))
    assert len(refused(path).splitlines()) == 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize("key", ["seeds", "trials", "mapping", "choice", "zip", "includes"])
def test_many_values_are_read_or_refused_in_seconds(refused, tmp_path, key):
    many = list(range(12_000))
    mapping, rates = {f"key{number}": 1 for number in many}, [{"l1": number / 1e6} for number in range(2_000)]
    contents = {
        "seeds": {"seeds": list(range(12_000))},
        "trials": {"seeds": list(range(8)), "trials": [{"model": "cnn5", "method": "ibp", "train": rates}]},
        "mapping": {"trials": [{"model": "cnn5", "method": "ibp", "options": mapping}]},
        "choice": {"search": {"spaces": {"train.l1": {"choice": [*many, 0]}}, "trials": 2}},
        "zip": {"trials": [{"model": "cnn5", "method": "ibp", "zip": list(mapping)}]},
        "includes": {"include": "0.yaml"},
    }
    for number in range(1_000 if key == "includes" else 0):
        write(tmp_path, f"include: {number + 1}.yaml\n", f"{number}.yaml")
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(BASE | contents[key]))
    began = time.process_time()
    message = refused(path)
    assert time.process_time() - began < 10
    counts = {"seeds": "12,000", "trials": "16,000"}
    allowed = "trials or more with all seeds', allowed: at most 10,000"
    assert key not in counts or f"study.yaml: trials: found '{counts[key]} {allowed}" in message


def test_a_file_that_is_endless_is_refused():
    with pytest.raises(InputError, match="cannot be read: it is no file"):
        load_sweep(Path("/dev/zero"), None, True)


def test_a_file_that_cannot_be_read_is_refused(refused, tmp_path):
    assert "nowhere.yaml: cannot be read: No such file" in refused(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["5e-1", "5E-1", "+5e-1", "5.e-1", ".5e0", "0.5"])
def test_a_number_of_yaml_1_2_is_a_number(tmp_path, text):
    content = yaml.safe_dump(BASE).replace("epochs: 4", f"epochs: 4\n  clip_norm: {text}", 1)
    assert trainings_of(tmp_path, content)[0].train.clip_norm == 0.5


@pytest.mark.parametrize(
    ("key", "kind"), [("epochs", "integer"), ("clip_norm", "number"), ("recompute_statistics", "boolean")]
)
@pytest.mark.parametrize("text", ["010", "1:30:00", "1_000", "0x10", "0b1", "yes", "on", "2026-11-20", "0o7", "1:30.5"])
def test_what_yaml_1_1_reads_otherwise_than_it_looks_is_a_text(tmp_path, key, kind, text):
    content = yaml.safe_dump(changed(remove=["train"])) + f"train: {{{key}: {text}}}\n"
    with pytest.raises(InputError, match=f"study.yaml: train.{key}: found '{text}': Input should be a valid {kind}"):
        load_sweep(write(tmp_path, content), None, True)


@pytest.mark.parametrize("text", ["no", "1:30", "007", "2026-11-20"])
def test_a_name_is_the_text_that_is_written(tmp_path, text):
    content = yaml.safe_dump(changed(("profiles", {"small": {}}))).replace("small", text)
    assert load_sweep(write(tmp_path, content), text, True).profile == text


def test_an_integer_is_accepted_for_a_number(tmp_path):
    content = changed(("train.clip_norm", 5), ("width", 1), ("resources.gpu", 1))
    sweep = load_sweep(write(tmp_path, content), None, True)
    values = (sweep.trainings[0].train.clip_norm, sweep.trainings[0].width, sweep.resources.gpu)
    assert values == (5.0, 1.0, 1.0) and all(type(value) is float for value in values)


def test_an_eps_that_yaml_reads_as_a_number_is_exact(tmp_path):
    content = yaml.safe_dump(BASE).replace("eps: 1/16", "eps: 0.1")
    assert str(trainings_of(tmp_path, content)[0].train.eps) == "1/10"


def test_aliases_and_merge_keys_are_accepted(tmp_path):
    text = yaml.safe_dump(changed(("seeds", [0]))) + "profiles:\n  a: &a {width: 0.5}\n  b: {<<: *a, seeds: [3]}\n"
    config = trainings_of(tmp_path, text, "b")[0]
    assert (config.width, config.seed) == (0.5, 3)
