// What one launch on a device is told: sizes, addresses of device memory, and how it is laid out.
#pragma once

#include "basis.h"
#include "descent.h"
#include "problem.h"

namespace polyfuse {

// Bytes of the workspace before the partial sums: counters, 0 between launches.
constexpr int64_t kHeader = 64;
constexpr int kMaxParams = 64;  // scalar parameters that a device's kernels hold on chip

// State buffer: rows [P]; outcome; recorded losses.
enum Row : int32_t { kParams, kGrad, kBefore, kKeptRows, kStateRows = kKeptRows + kKept };
// Tables of addresses [P], 0 where there is nothing: parameters, gradients, what is kept of them,
// and where the next parameters and the next of what is kept go.
enum Table : int32_t { kParamAt, kGradAt, kKeptAt, kNextAt = kKeptAt + kKept, kNextKeptAt };
constexpr int kRuleRow = 1 + kOptions;
constexpr int kOutcome = 5;  // epochs, converged, loss, previous, square

enum Flags : int32_t {
  kLoad = 1,     // parameters and what is kept of them come from the tables
  kStore = 2,    // parameters, gradients and what is kept go to the tables
  kStep = 4,     // one epoch; its loss is that before the step
  kMoments = 8,  // moments alone
};

// How a launch fills the device.
struct Geometry {
  int32_t blocks = 1;
  int32_t threads = 32;
  int64_t shared = 0;    // bytes, beyond what a kernel declares
  int64_t chunk = 0;     // samples of one block, where blocks keep to their own
  int64_t resident = 0;  // of which so many stay on chip
  bool cooperative = false;
};

struct Run {
  Data data;
  Criterion criterion;
  bool mean = true;
  Engine engine = Engine::Stream;
  Schedule schedule;
  int32_t flags = 0;

  int32_t n_params = 0, n_coefficients = 0, n_terms = 0, n_slots = 0;
  bool identity = false;
  const double* factor = nullptr;  // [T]
  const Span* spans = nullptr;     // [T]
  const int32_t* slots = nullptr;  // [F]

  // Of several outputs: parameters are [K, C]; of one variable, in the terms of a basis and under
  // cross entropy.
  int32_t n_outputs = 1;
  bool index = false;    // y are classes [N], int64
  int64_t y_output = 0;  // from output to output of y [N, C]
  int64_t w_output = 0;  // 0: all outputs have the same weights
  Recurrence basis;

  const double* rule = nullptr;  // [1 + C, P, kRuleRow]: method, options
  // Epochs of the launch, ascending, from which on the next rule holds, and one that never comes;
  // null: there is one rule.
  const int64_t* changes = nullptr;  // [C + 1]
  const double* bounds = nullptr;    // [2, P], low and high, for engines that step; null: none
  double* state = nullptr;           // [7 P + 5 + M]; [P] for evaluate and project
  double* moments = nullptr;         // [4 K + 2]: shift, scale, square, reference, power, cross
  bool has_moments = false;          // they are there; else the launch computes them
  const int64_t* tables = nullptr;   // [11, P]
  int32_t single = 0;                // bit r: number r of what is kept lies in the tables' float32
  void* out = nullptr;               // of evaluate, project, count_nonfinite
  void* workspace = nullptr;
  int32_t device = 0;
  Geometry grid;
};

}  // namespace polyfuse
