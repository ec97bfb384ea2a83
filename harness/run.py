"""`python -m harness.run`: the door to harness/launch/driver.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("run"))
