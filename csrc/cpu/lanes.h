// Fits side by side in the lanes of packs: what goes in and out of them, and their updates.
#pragma once

#include <algorithm>
#include <cmath>

#include "pace.h"
#include "samples.h"

namespace polyfuse {
inline namespace PF_ISA {

// Two registers of fits: while the sums of one wait for each other, those of the other go on.
constexpr int kFitLanes = 2 * kRegister / static_cast<int>(sizeof(double));
using FitPack = PackOf<kFitLanes>;

// Numbers so many fits on are on their way to the cache: there are more rows than a processor would
// follow by itself.
constexpr int kAhead = 64;

// Numbers of a row [B], as float or double; lanes past the end repeat the last.
template <class T>
PF_INLINE FitPack load_row(const T* row, int count) {
  __builtin_prefetch(row + kAhead);
  if constexpr (std::is_floating_point<T>::value)
    if (count == kFitLanes) return FitPack::load(row);
  double lane[kFitLanes];
  for (int i = 0; i < kFitLanes; ++i) lane[i] = static_cast<double>(row[std::min(i, count - 1)]);
  return FitPack::load(lane);
}
template <class T>
PF_INLINE void store_row(FitPack value, T* row, int count) {
  __builtin_prefetch(row + kAhead, 1);
  if constexpr (!std::is_same<T, int64_t>::value)
    if (count == kFitLanes) return value.store(row);
  double lane[kFitLanes];
  value.store(lane);
  for (int i = 0; i < count; ++i) row[i] = static_cast<T>(lane[i]);
}
inline FitPack with_lane(FitPack pack, int i, double value) {
  double lane[kFitLanes];
  pack.store(lane);
  lane[i] = value;
  return FitPack::load(lane);
}
inline FitPack load_row(const void* rows, Dtype dtype, int64_t at, int count) {
  return dtype == Dtype::Float32 ? load_row(static_cast<const float*>(rows) + at, count)
                                 : load_row(static_cast<const double*>(rows) + at, count);
}
inline void store_row(FitPack value, void* rows, Dtype dtype, int64_t at, int count) {
  if (dtype == Dtype::Float32)
    store_row(value, static_cast<float*>(rows) + at, count);
  else
    store_row(value, static_cast<double*>(rows) + at, count);
}

// Parameters of fits and what the rule keeps of them.
struct Lanes {
  FitPack p[kMaxTerms], grad[kMaxTerms], kept[kMaxTerms][kKept];
  FitPack loss{}, previous = FitPack::all(NAN), epochs{}, active = FitPack::all(1.0);
  bool bounded = false;
  FitPack low[kMaxTerms], high[kMaxTerms];
};

// Of those that go on. Not inlined, as every objective calls it.
__attribute__((noinline)) inline void update(const UpdateRule& rule, const double* rate,
                                             int n_terms, const FitPack* grad, Lanes& s) {
  with_rule(rule.method, [&](auto of) PF_ALWAYS_INLINE {
    for (int j = 0; j < n_terms; ++j) {
      FitPack p = s.p[j], kept[kKept];
      for (int r = 0; r < kKept; ++r) kept[r] = s.kept[j][r];
      of.update(rule.option, rate, p, grad[j], kept);
      if (s.bounded) p = projected(p, s.low[j], s.high[j]);
      s.p[j] = if_zero(s.active, s.p[j], p);
      for (int r = 0; r < kKept; ++r) s.kept[j][r] = if_zero(s.active, s.kept[j][r], kept[r]);
    }
  });
}

struct Recorder {
  double* next;  // [M, B], at the fits
  int64_t stride;
  int count;
  void operator()(FitPack loss) {
    store_row(loss, next, count);
    next += stride;
  }
};

inline bool any_goes_on(const Lanes& s) {
  bool any = false;
  for (int i = 0; i < kFitLanes; ++i) any = any || s.active.lane(i) != 0.0;
  return any;
}

}  // namespace PF_ISA
}  // namespace polyfuse
