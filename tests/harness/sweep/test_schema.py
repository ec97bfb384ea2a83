"""The schema of sweep files, from which the documentation is made: every key is described."""

from harness.sweep.schema import sweep_schema


def keys(schema):
    """Each key with its schema, at whatever depth."""
    yield from schema.get("properties", {}).items()
    for inner in schema.get("$defs", {}).values():
        yield from keys(inner)


def test_every_key_says_what_it_means():
    assert [name for name, value in keys(sweep_schema()) if not value.get("description")] == []
