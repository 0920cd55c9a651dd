// Passes over a range of samples, one table of them for every instruction set.
#pragma once

#include "../core/quiet.h"

namespace polyfuse {

struct BatchPlan;
struct Stacked;
struct Surface;

constexpr int kResidentSamples = 64;
constexpr int kResidentTerms = 8;

// A design of any kind: N rows of K numbers from which a shift is subtracted, column by column.
struct Columns {
  const double* x = nullptr;      // [K, N]
  const double* y = nullptr;      // [N]
  const double* w = nullptr;      // [N]; null: 1 everywhere
  const double* shift = nullptr;  // [K]
  int64_t n = 0;
  int n_terms = 0;
};

struct Passes {
  const char* isa;

  // out: [sum of w value, K sums of w slope u^k, sum of w]. single: arithmetic in float32, of data
  // in float32 that is contiguous and whole, in a variable that is x itself.
  void (*loss)(const Data&, const Criterion&, const double* coef, int n_terms, bool single,
               int64_t begin, int64_t end, double* out);
  // out: [sums of w u^k for k < 2 K - 1, K sums of w u^k r, sum of w r^2]
  void (*moments)(const Data&, const double* coef, int n_terms, int64_t begin, int64_t end,
                  double* out);
  // y[i] = V coef, contiguous, in data.dtype
  void (*evaluate)(const Data&, const double* coef, int n_terms, int64_t begin, int64_t end,
                   void* y);
  // out: [K sums of y u^k]
  void (*project)(const Data&, int n_terms, int64_t begin, int64_t end, double* out);
  // sets out[0] to the number of samples with a nan or inf
  void (*count_nonfinite)(const Data&, int64_t begin, int64_t end, double* out);
  // Squared error on at most kResidentSamples samples, coefficients that are the parameters and at
  // most kResidentTerms of them: all epochs on data that never leaves the core.
  void (*resident)(const Data&, int n_terms, const LinearStep* step, bool with_momentum,
                   int64_t epochs, double* params, double* momentum);
  // fits [begin, end)
  void (*batch)(const BatchPlan&, int64_t begin, int64_t end);
  // Of several variables. out: [value, sum of w, K C sums of w slope phi]
  void (*surface_loss)(const Surface&, const double* coef, int64_t begin, int64_t end, double* out);
  // out: [sum w r^2, sum of w, K C sums of w phi r, M sums of w phi phi]
  void (*surface_moments)(const Surface&, const double* coef, int64_t begin, int64_t end,
                          double* out);
  // Outputs [first, last) of those stacked. out: [K, C] sums of w slope phi, [C] of w value, [C] of
  // w
  void (*stacked_loss)(const Stacked&, const double* coef, int64_t first, int64_t last,
                       int64_t begin, int64_t end, double* out);
  // out: [value, what samples count, K C sums of slope phi]
  void (*class_loss)(const Stacked&, const double* coef, int64_t begin, int64_t end, double* out);
  // As moments, in double-double arithmetic: hi and lo of each.
  void (*extended_moments)(const Data&, const double* coef, int n_terms, int64_t begin, int64_t end,
                           double* out);
  // out: hi and lo of [the lower triangle of V^T W V by rows, K of V^T W r, r^T W r], r = V coef -
  // y
  void (*extended_gram)(const Columns&, const double* coef, int64_t begin, int64_t end,
                        double* out);
};

extern const Passes passes_baseline;
extern const Passes passes_avx2;
extern const Passes passes_avx512;

const Passes& passes();  // the widest this machine runs
// Those for n samples: short work does not pay for a core that slows down for its widest registers.
const Passes& passes_for(int64_t n);

}  // namespace polyfuse
