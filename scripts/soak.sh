#!/bin/sh
# Run the long tests and keep their output as benchmarks/results/soak-DATE.txt; further arguments go to pytest.
set -eu
cd -- "$(dirname -- "$0")/.."
mkdir -p benchmarks/results
log=benchmarks/results/soak-$(date +%Y-%m-%dT%H%M%S).txt
status=.venv/.soak-status
{
    printf 'revision %s\n' "$(git describe --always --dirty 2>/dev/null || echo unknown)"
    code=0
    .venv/bin/python -m pytest -m soak "$@" || code=$?
    # pytest's 5 means that no test was selected.
    printf '%s\n' "$code" >"$status"
} 2>&1 | tee "$log"
printf '%s\n' "log: $log"
exit "$(cat "$status")"
