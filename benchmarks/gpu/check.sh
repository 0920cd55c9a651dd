#!/usr/bin/env bash
# Everything that needs a GPU: build, tests, benchmark, sanitizers. Nothing is fetched; under 9 minutes.
# usage: benchmarks/gpu/check.sh DIRECTORY-FOR-RESULTS
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/../.."
failed=""
step() {  # name, seconds, command...
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  export POLYFUSE_TEST_UNTIL=$(($(date +%s) + limit - 10))  # then pytest reports what it has run
  timeout --signal INT --kill-after 5 "$limit" "$@" >"$out/$name.log" 2>&1 ||
    { status=$?; failed+=" $name"; }
  echo "== $name: $((SECONDS - start)) s, status $status" | tee -a "$out/steps.txt"
  tail -n "${lines:-15}" "$out/$name.log"
  return $status
}
pytest=(python3 -m pytest -m gpu -W default -p no:cacheprovider --tb short --durations 5 -rs)
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/gpu.txt"
# Machine code for this GPU alone; without it a build takes several times as long.
# Installed apart: site-packages may be read-only, and may hold another polyfuse.
site=$(mktemp -d)
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
trap 'rm -rf "$site"' EXIT
install=(python3 -m pip install --disable-pip-version-check --no-build-isolation --no-deps --upgrade
  --target "$site" .)
export CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=native"
cuda=yes
step build 140 "${install[@]}" || cuda=""
[ "$cuda" ] || CMAKE_ARGS="-DPOLYFUSE_CUDA=off" step build_without_cuda 60 "${install[@]}"
step info 20 python3 -c "from polyfuse.cli import main; main(['info'])"
# Most of the time of tests is that of the reference on the CPU, and of Triton's compiler.
python3 -c "import xdist" 2>/dev/null && workers=(-n "$(nproc)") || workers=()
export OMP_NUM_THREADS=1
[ "$cuda" ] && step tests_but_triton 50 "${pytest[@]}" "${workers[@]}" -k "not triton" tests/gpu
step tests_of_triton 100 "${pytest[@]}" "${workers[@]}" -k "triton" tests/gpu
unset OMP_NUM_THREADS
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # JAX leaves torch the memory that it does not use
# Written after every case, so that what was measured is there even where time runs out.
lines=80 step benchmark 140 python3 benchmarks/run.py --gpu --seconds 2 --out "$out/gpu.json"
for tool in memcheck racecheck; do
  if [ "$cuda" ] && command -v compute-sanitizer >/dev/null; then
    step "$tool" 40 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "${pytest[@]}" -k "small and not large and not triton" tests/gpu
  fi
done
echo "FAILED:${failed:- nothing}" | tee -a "$out/steps.txt"
[ -z "$failed" ]
