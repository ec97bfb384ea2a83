"""`python -m harness.schema`: the door to harness/config/schema.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("schema"))
