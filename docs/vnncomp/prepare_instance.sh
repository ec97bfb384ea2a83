#!/bin/bash
# prepare_instance.sh v1 CATEGORY NETWORK.onnx PROPERTY.vnnlib: check that the files exist.
# It also imports the packages once, so that they lie in the disk's cache.
set -eu
[ "${1:-}" = v1 ] || { echo "found version '${1:-}', allowed: v1" >&2; exit 1; }
for file in "$3" "$4"; do
    [ -r "$file" ] || { echo "$file cannot be read" >&2; exit 1; }
done
root="$(dirname "$(realpath "$0")")/../.."
export PYTHONPATH="$root"
"${VNNCOMP_PYTHON:-$root/.venv/bin/python}" -c "import cerdeq, highspy, onnxruntime, scipy.optimize"
