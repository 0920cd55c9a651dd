// Many small fits in one launch, side by side in the lanes of a pack.
#pragma once

#include <algorithm>
#include <vector>

#include "../core/batch.h"
#include "../core/leap.h"
#include "passes.h"

namespace polyfuse {

// The rule from an epoch of the launch on.
struct Change {
  int64_t epoch;
  UpdateRule rule;
};

// B fits of N samples and K terms.
struct Batch {
  Series x, y, w;  // w: none negative, a sample of weight 0 is left out; null: 1 everywhere
  int64_t n = 0, fits = 0;
  Dtype dtype = Dtype::Float64;  // of params, grad, kept
  bool omit = false;             // leave out samples with a nan or inf
  int32_t n_terms = 0;
  double shift = 0.0, scale = 1.0;  // of the model's variable u
  Recurrence basis;
  bool mean = true;
  Criterion criterion;

  bool solve = false;                    // for the optimum, not by epochs
  DegreeBy degree_by = DegreeBy::Terms;  // with solve
  Engine engine = Engine::Moments;
  Schedule schedule;
  UpdateRule rule;
  std::vector<Change> changes;   // of the rule, by epoch
  double kept_once[kKept] = {};  // rows of the rule's state that all fits share
  void* kept[kKept] = {};        // [K, B] in dtype, the others; null: not kept

  void* params = nullptr;                        // [K, B] in dtype
  const double *low = nullptr, *high = nullptr;  // [K, B], of params; null: nowhere
  void* grad = nullptr;             // [K, B] in dtype, of the last step; null with solve
  double* loss = nullptr;           // [B], at params
  double* recorded = nullptr;       // [M, B]
  double* determination = nullptr;  // [B], R^2; null: not wanted
  double* covariance = nullptr;     // [K, K, B], of unit variance of y; null: not wanted
  int32_t* counted = nullptr;       // [B], samples that are not left out; with solve
  double* weight_sum = nullptr;     // [B], of their weights; with solve
  // [B], of the launch before and of this one; null: not wanted
  double* previous = nullptr;   // loss of the last epoch, before its step
  int64_t* epochs = nullptr;    // done by each; a fit with fewer than others has settled
  int32_t* degree = nullptr;    // [B]; null where n_terms say it
  int32_t* rank = nullptr;      // [B]; read where the first epoch is not the first
  FitStatus* status = nullptr;  // [B]
};

// What fits share that share x and weights: V = Q factor, Q^T W Q = 1.
struct Design {
  const double* q = nullptr;       // [N, K]; of a plan, W^1/2 Q
  const double* factor = nullptr;  // [K, K], upper triangular
  const double* u = nullptr;       // [N]
  const double* root = nullptr;    // [N], of the weights; null: 1
  double weight = 0.0;             // sum of the weights
  double counted = 0.0, rank = 0.0;
};

struct OwnedDesign {
  std::vector<double> q, factor, u, root;
  Design view;
};
OwnedDesign design_of(const Batch&);

struct OwnedLeaps {
  std::vector<double> maps;  // [3, 2 K, 3 K]
  Leaps view;
};
OwnedLeaps leaps_of(const Batch&, const Design&);

struct BatchPlan {
  const Batch& batch;
  const Design* design = nullptr;  // null where fits have x or weights of their own
  const double* rates = nullptr;   // [paced, kRates], of the first epochs
  int64_t paced = 0;
  double kept[kKept];  // rows that all fits share, after those epochs
  Leaps leaps;

  explicit BatchPlan(const Batch& of) : batch(of) { std::copy_n(of.kept_once, kKept, kept); }
};

// Fits that are read together: a cache line of every row. More at once would ask for more lines
// than can be on their way.
constexpr int kTile = 16;

// Rates [epochs, kRates] of the rule's first epochs.
std::vector<double> rates_of(const Batch&, int64_t epochs);

// Numbers [kKept] that the rule keeps once per tensor, so many epochs later.
std::vector<double> kept_once_after(const Batch&, int64_t epochs);

// Fits from `first` on, until `seconds` are over; returns the first fit that is left.
int64_t run_batch(const Batch&, int64_t first, double seconds, int threads);

}  // namespace polyfuse
