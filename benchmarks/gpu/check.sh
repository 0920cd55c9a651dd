#!/usr/bin/env bash
# Everything that needs a GPU: build, tests, sanitizers, benchmark. Nothing is fetched; under 9 minutes.
# usage: benchmarks/gpu/check.sh DIRECTORY [STEP...]   steps, all where none is named: build tests sanitize benchmark
# DIRECTORY gets summary.txt (what passed, and the table of the benchmark), log.txt and gpu.json.
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
steps="build tests sanitize benchmark"
wanted=" ${*:-$steps} "
for name in $wanted; do
  [[ " $steps " == *" $name "* ]] || { echo "$name: expected one of $steps" >&2; exit 2; }
done
cd "$(dirname "$0")/../.."
export PATH="$PATH:/usr/local/cuda/bin"
export POLYFUSE_TEST_LOG="$out/log.txt"
failed=""
wants() { [[ $wanted == *" $1 "* ]]; }
step() {  # name, seconds, command...
  local name=$1 limit=$2 start=$SECONDS status=0 before
  shift 2
  export POLYFUSE_TEST_UNTIL=$(($(date +%s) + limit - 10))  # then pytest reports what it has run
  echo "#### $name" >>"$out/log.txt"
  before=$(wc -l <"$out/log.txt")
  timeout --signal INT --kill-after 15 "$limit" "$@" >>"$out/log.txt" 2>&1 || status=$?
  tail -n "+$((before + 1))" "$out/log.txt" | grep "no time is left" >/dev/null && [ $status -eq 0 ] && status=124
  [ $status -eq 0 ] || failed+=" $name"
  echo "== $name: $((SECONDS - start)) s, status $status" | tee -a "$out/summary.txt"
  tail -n "+$((before + 1))" "$out/log.txt" | tail -n 8
  return $status
}
pytest=(python3 -m pytest -m gpu -W default -p no:cacheprovider --tb short --durations 5 -rsfE -vv)
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee -a "$out/summary.txt"
# Installed apart: site-packages may be read-only, and may hold another polyfuse.
site=$PWD/build/gpu-site
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
install=(python3 -m pip install -v --disable-pip-version-check --no-build-isolation --no-deps --upgrade
  --target "$site" .)
if wants build; then
  # Machine code for this GPU alone; without it a build takes several times as long.
  export CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=native -DPOLYFUSE_CUDA=on"
  step build 130 "${install[@]}" ||
    CMAKE_ARGS="-DPOLYFUSE_CUDA=off" step build_without_cuda 60 "${install[@]}"
fi
step info 40 python3 -c "from polyfuse.cli import main; main(['info'])"
python3 -c "import polyfuse._cuda" 2>/dev/null && cuda=yes || cuda=""
if wants tests; then
  # Most of the time of tests is that of the reference on the CPU, and of Triton's compiler.
  python3 -c "import xdist" 2>/dev/null && workers=(-n "$(nproc)") || workers=()
  export OMP_NUM_THREADS=1
  # The last to be cut are those that nothing but a GPU can answer.
  files=(tests/gpu/test_{loop,responses,batch,backends}.py)
  [ "$cuda" ] && step tests_but_triton 50 "${pytest[@]}" "${workers[@]}" -k "not triton" "${files[@]}"
  step tests_of_triton 100 "${pytest[@]}" "${workers[@]}" -k "triton" "${files[@]}"
  unset OMP_NUM_THREADS
fi
if wants sanitize && [ "$cuda" ] && command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    # Without torch's cache an access beyond an allocation is one beyond memory; graphs need the cache.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" 35 \
      compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "${pytest[@]}" -k "small and not large and not triton and not graph" \
      tests/gpu/test_{batch,loop,responses,backends}.py
  done
fi
if wants benchmark; then
  export XLA_PYTHON_CLIENT_PREALLOCATE=false  # JAX leaves torch the memory that it does not use
  # Written after every case, so that what was measured is there even where time runs out.
  step benchmark 110 sh -c "python3 benchmarks/run.py --gpu --seconds 2 --out '$out/gpu.json' >>'$out/summary.txt'"
fi
echo "FAILED:${failed:- nothing}" >>"$out/summary.txt"
tail -c 9000 "$out/summary.txt"
[ -z "$failed" ]
