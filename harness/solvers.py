"""`python -m harness.solvers`: the door to harness/measure/equilibrium_solvers.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("solvers"))
