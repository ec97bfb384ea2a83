"""`python -m harness.depth`: the door to harness/analysis/depth.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("depth"))
