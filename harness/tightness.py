"""`python -m harness.tightness`: the door to harness/measure/tightness.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("tightness"))
