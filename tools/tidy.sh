#!/usr/bin/env bash
# clang-tidy over csrc, but for passes.cpp, which only the build's definitions give a meaning.
set -euo pipefail
cd "$(dirname "$0")/.."
includes=$(python -m pybind11 --includes | sed 's/-I/-isystem /g')
clang-tidy --quiet csrc/*.cpp csrc/cpu/{batch_run,least_squares,normal_equations,reduce,run,select,stacked_run,surface_run}.cpp csrc/cuda/{fits,geometry,surface}.cpp -- -std=c++17 -Icsrc $includes
