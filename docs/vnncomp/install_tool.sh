#!/bin/bash
# install_tool.sh v1: install this project with the extras `onnx` and `vnnlib` into .venv, at the root of the repository.
set -eu
[ "${1:-}" = v1 ] || { echo "found version '${1:-}', allowed: v1" >&2; exit 1; }
cd "$(dirname "$(realpath "$0")")/../.."
command -v uv > /dev/null || python3 -m pip install --user uv
PATH="$HOME/.local/bin:$PATH" uv sync --frozen --no-dev --extra onnx --extra vnnlib
