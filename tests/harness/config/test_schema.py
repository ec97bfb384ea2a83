"""The JSON schema of sweep files: up to date, accepts what the command accepts, refuses what it can."""

from pathlib import Path

import jsonschema
import pytest
from small_sweep import BASE, changed

from harness.command_line import main
from harness.config.schema import sweep_schema
from harness.config.sweep_text import parse_yaml

SWEEPS = Path(__file__).resolve().parents[3] / "sweeps"

WRONG = {
    "an unknown key": ("widht", 1),
    "an unknown key of the recipe": ("train.epoch", 3),
    "an unknown key of an entry's recipe": ("trials.0.train", {"epoch": 3}),
    "an unknown network": ("trials.0.model", "cnn4"),
    "another network's option": ("trials.0.options", {"margin": 0.1}),
    "an option of the wrong type": ("trials.1.options", {"margin": "much"}),
    "an option's choices of the wrong type": ("trials.1.options", {"margin": [0.1, "much"]}),
    "another method's option": ("trials.0.method_options", {"alpha": 0.5}),
    "an unknown stage": ("evaluation", {"stages": ["ibp", "crowm"]}),
    "an unknown precision among choices": ("trials.0.train", {"precision": ["tf32", "fp8"]}),
    "a key that a profile cannot change": ("profiles", {"cpu": {"eps": 0.1}}),
    "no seeds": ("seeds", []),
    "a choice of nothing": ("trials.0.model", []),
    "lists of what is a list by type": ("trials.0.train", {"decay_epochs": [[1], [2]]}),
}
RIGHT = {
    "networks and methods": ("trials.0", {"model": ["cnn5", "cnn7"], "method": ["ibp", "pgd"]}),
    "an option's choices": ("trials.1.options", {"margin": [0.1, 0.3], "gain": [0.5, None]}),
    "depths": ("trials.0", {"model": "cnn", "method": "ibp", "options": {"depth": [5, 7]}}),
    "mappings": ("trials.1.options", [{"margin": [0.1, 0.3]}, {"recurrent": False}]),
    "recipes": ("trials.0.train", [{"clip_norm": [None, 1.0], "decay_epochs": [1, 2]}, {}]),
    "lists that advance together": ("trials.0", {"model": ["cnn5"], "method": ["ibp"], "zip": ["model", "method"]}),
    "no profiles": ("profiles", None),
    "a plugin's network": ("plugins", ["own.nets"]),
}


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


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused(case, schema):
    schema.validate(BASE)
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(changed(WRONG[case]))


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_is_accepted(case, schema):
    changes = [("trials.0.model", "own")] if case == "a plugin's network" else []
    schema.validate(changed(RIGHT[case], *changes))


def test_what_an_included_file_may_hold_is_not_required(schema):
    schema.validate({"name": "study", "include": "recipes/all.yaml"})
    with pytest.raises(jsonschema.ValidationError):
        schema.validate({"name": "study"})
