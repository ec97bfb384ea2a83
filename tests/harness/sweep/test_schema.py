"""The JSON schema of sweep files: up to date, accepts what the command accepts, refuses what it can."""

from pathlib import Path

import jsonschema
import pytest
from small_sweep import BASE, changed, entry

from harness.command_line import main
from harness.sweep.schema import sweep_schema
from harness.sweep.sweep_text import parse_yaml

SWEEPS = Path(__file__).resolve().parents[3] / "sweeps"

WRONG = [
    ("widht", 1),
    ("train.epoch", 3),
    ("seeds", []),
    ("evaluation", {"stages": ["ibp", "crowm"]}),
    ("profiles", {"cpu": {"eps": 0.1}}),
    ("trials.0.model", "cnn4"),
    ("trials.0.model", []),
    ("trials.0.train", {"epoch": 3}),
    ("trials.0.train", {"precision": ["tf32", "fp8"]}),
    ("trials.0.train", {"decay_epochs": [[1], [2]]}),
    ("trials.0.options", {"margin": 0.1}),
    ("trials.1.options", {"margin": [0.1, "much"]}),
    ("trials.0.method_options", {"alpha": 0.5}),
]
RIGHT = [
    ("trials.0", entry(["ibp", "pgd"], ["cnn5", "cnn7"], zip=["model", "method"])),
    ("trials.0", entry(model="cnn", options={"depth": [5, 7]})),
    ("trials.1.options", [{"margin": [0.1, 0.3], "gain": [0.5, None]}, {"recurrent": False}]),
    ("trials.0.train", [{"clip_norm": [None, 1.0], "decay_epochs": [1, 2]}, {}]),
    ("profiles", None),
]


@pytest.fixture(scope="module")
def schema():
    return jsonschema.Draft7Validator(sweep_schema())


def keys(schema):
    """Each key with its schema, at whatever depth."""
    yield from schema.get("properties", {}).items()
    for name, inner in schema.get("$defs", {}).items():
        if not name.startswith("options-of-"):  # networks' options: docs/equilibria.md
            yield from keys(inner)


def test_the_committed_schema_is_what_the_command_prints(capsys, schema):
    assert main("schema", []) == 0
    printed = capsys.readouterr().out
    assert (SWEEPS / "schema.json").read_text() == printed, "python -m harness.schema > sweeps/schema.json"
    schema.check_schema(schema.schema)


def test_every_key_says_what_it_means(schema):
    assert [name for name, value in keys(schema.schema) if not value.get("description")] == []


def test_the_project_s_sweeps_name_the_schema_and_fit_it(schema):
    for path in SWEEPS.glob("*.yaml"):
        assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n"), path
        schema.validate(parse_yaml(path.read_text()))


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_a_wrong_file_is_refused(change, schema):
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(changed(change))


@pytest.mark.parametrize("change", RIGHT, ids=str)
def test_a_right_file_is_accepted(change, schema):
    assert list(schema.iter_errors(changed(change))) == []


def test_plugins_add_networks_and_an_included_file_may_have_any_key(schema):
    schema.validate(changed(("plugins", ["own.nets"]), ("trials.0.model", "own")))
    schema.validate({"name": "study", "include": "recipes/all.yaml"})
    with pytest.raises(jsonschema.ValidationError):
        schema.validate({"name": "study"})
    schema.validate(BASE)
