#!/bin/bash
# run_instance.sh v1 CATEGORY NETWORK.onnx PROPERTY.vnnlib RESULTS_FILE TIMEOUT: write the answer to RESULTS_FILE.
set -u
[ "${1:-}" = v1 ] || { echo "found version '${1:-}', allowed: v1" >&2; exit 1; }
root="$(dirname "$(realpath "$0")")/../.."
export PYTHONPATH="$root"
rm -f "$5"
# A step that has begun when the time is up is finished: the command is stopped after 10 seconds more.
timeout $((${6%.*} + 10)) "${VNNCOMP_PYTHON:-$root/.venv/bin/python}" -m harness.verify "$3" "$4" --timeout "$6" --output "$5"
status=$?
[ -s "$5" ] && exit 0
if [ $status = 124 ]; then echo timeout > "$5"; else echo error > "$5"; fi
