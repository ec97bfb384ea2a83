"""`python -m harness.ui`: the door to harness/launch/ui.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("ui"))
