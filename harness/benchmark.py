"""`python -m harness.benchmark`: the door to harness/measure/benchmark.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("benchmark"))
