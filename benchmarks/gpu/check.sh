#!/usr/bin/env bash
# Everything that needs a GPU: build, tests, sanitizers, benchmark. Nothing is fetched; under 9 minutes.
# usage: benchmarks/gpu/check.sh DIRECTORY-FOR-RESULTS
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/../.."
failed=0
step() {  # name, seconds, command...
  local name=$1 limit=$2
  shift 2
  echo "== $name"
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || { failed=1; echo "FAILED: $name"; }
  tail -n 15 "$out/$name.log"
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/gpu.txt"
step build 150 python3 -m pip install --no-build-isolation --no-deps .
step info 20 polyfuse info
step tests 120 python3 -m pytest -m gpu tests/gpu
for tool in memcheck racecheck; do
  if command -v compute-sanitizer >/dev/null; then
    step "$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      python3 -m pytest -m gpu -k small tests/gpu
  fi
done
step benchmark 150 python3 benchmarks/run.py --gpu --seconds 4 --out "$out/gpu.json"
exit $failed
