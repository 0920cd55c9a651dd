// Many small fits on a device: what a launch is told, and how it is laid out.
#pragma once

#include "../core/batch.h"
#include "../core/leap.h"
#include "../core/run.h"
#include "geometry.h"

namespace polyfuse {

constexpr int kMaxFitTerms = 16;
constexpr int kUnrolledTerms = 5;  // so many, and fewer, have kernels of their own
constexpr int kFewTerms = 8;       // beyond those, up to here with half the room, in local memory
constexpr int kFitThreads = 128;   // and as many fits of a block
// Blocks that a processor has registers for.
constexpr int fit_blocks(int n_terms) { return n_terms <= 3 ? 5 : n_terms == 4 ? 4 : 3; }

// The design of fits that share x and weights; see csrc/cpu/batch.h.
struct Shared {
  const double* q = nullptr;       // [N, K]
  const double* factor = nullptr;  // [K, K]
  double weight = 0.0;
  int32_t rank = 0;
};

// B fits of N samples and K terms; addresses are the device's.
struct Fits {
  Series x, y, w;  // of one dtype; w: none negative, a sample of weight 0 is left out; null: 1
  int64_t n = 0, fits = 0;
  Dtype dtype = Dtype::Float64;  // of the data, of params, grad and kept
  bool wide = false;             // but those are float64
  bool omit = false;             // leave out samples with a nan or inf
  int32_t n_terms = 0;
  double shift = 0.0, scale = 1.0;  // of the model's variable u
  Recurrence basis;

  DegreeBy degree_by = DegreeBy::Terms;  // of solve

  Engine engine = Engine::Moments;  // of descend, with what follows
  bool mean = true;
  bool step = false;  // one epoch of a training loop, which takes the loss before it and no more
  Criterion criterion;
  Schedule schedule;
  UpdateRule rule;
  const int64_t* changes = nullptr;  // as those of Run,
  const double* rules = nullptr;     // [1 + C, kRuleRow]; null with changes
  const double* rates = nullptr;     // [paced, kRates], of the first epochs
  int64_t paced = 0;                 // those that follow have the last of them
  // [K, B], where a launch finds what is kept and where it goes; null: not for every parameter
  const void* kept_from[kKept] = {};
  void* kept[kKept] = {};
  const double *low = nullptr, *high = nullptr;  // [K, B], of params; null: nowhere
  Shared design;                                 // of the closed form, with what follows
  Leaps leaps;

  const void* start = nullptr;      // [K, B], the parameters that descend begins with
  void* params = nullptr;           // [K, B]; null: they stay as they are
  double* before = nullptr;         // [K, B], a copy of those of `start`; null: not wanted
  void* grad = nullptr;             // [K, B], of the last step
  double* loss = nullptr;           // [B], at params
  double* recorded = nullptr;       // [M, B]
  double* determination = nullptr;  // [B], R^2
  double* covariance = nullptr;     // [K, K, B], of unit variance of y; null: not wanted
  int32_t* counted = nullptr;       // [B], samples that are not left out; of solve
  double* weight_sum = nullptr;     // [B], of their weights; of solve
  // [B], of the launch before and of this one; rank is read there as well
  double* previous = nullptr;   // loss of the last epoch, before its step; null: not wanted
  int64_t* epochs = nullptr;    // done by each; a fit with fewer than others has settled
  int32_t* degree = nullptr;    // [B]; null where n_terms say it
  int32_t* rank = nullptr;      // [B]
  FitStatus* status = nullptr;  // [B]

  bool on_chip = false;  // blocks keep the samples of their fits in shared memory
  bool alike = false;    // one design for all, which every block computes
  int32_t device = 0;
  Geometry grid;
};

// Lays out a launch.
void lay_out(Fits&, bool solve, const Device&);

void launch_solve_fits(const Fits&, void* stream);
void launch_descend_fits(const Fits&, void* stream);
void launch_leap_fits(const Fits&, void* stream);

}  // namespace polyfuse
