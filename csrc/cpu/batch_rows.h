// The samples of fits side by side, from where they lie into packs.
#pragma once

#include "../core/power_sums.h"
#include "batch.h"
#include "lanes.h"

namespace polyfuse {
inline namespace PF_ISA {

// The samples of fits from `fit` on, into[pack * n + i]. Row by row where fits are neighbours in
// memory, or else fit by fit.
template <class T>
inline void gather_of(const Series& series, int64_t n, int64_t fit, int count, FitPack* into) {
  const T* from = static_cast<const T*>(series.at) + fit * series.fit;
  const int packs = (count + kFitLanes - 1) / kFitLanes;
  if (series.fit == 1 && count == packs * kFitLanes) {
    for (int64_t i = 0; i < n; ++i) {
      const T* row = from + i * series.sample;
      for (int p = 0; p < packs; ++p) {
        __builtin_prefetch(row + kAhead + p * kFitLanes);
        into[p * n + i] = FitPack::load(row + p * kFitLanes);
      }
    }
    return;
  }
  for (int lane = 0; lane < packs * kFitLanes; ++lane) {
    const T* one = from + std::min(lane, count - 1) * series.fit;
    double* to = reinterpret_cast<double*>(into + lane / kFitLanes * n) + lane % kFitLanes;
    for (int64_t i = 0; i < n; ++i) to[i * kFitLanes] = one[i * series.sample];
  }
}

// The same of the x and y of one pack of fits that are neighbours in memory, and their sums.
template <int K>
PowerSums<K, FitPack> gather_and_add(const Batch& batch, int64_t fit, FitPack* x, FitPack* y) {
  const float* of_x = static_cast<const float*>(batch.x.at) + fit;
  const float* of_y = static_cast<const float*>(batch.y.at) + fit;
  PowerSums<K, FitPack> sums(FitPack::load(of_x));
  for (int64_t i = 0; i < batch.n; ++i, of_x += batch.x.sample, of_y += batch.y.sample) {
    __builtin_prefetch(of_x + kAhead);
    __builtin_prefetch(of_y + kAhead);
    x[i] = FitPack::load(of_x), y[i] = FitPack::load(of_y);
    sums.template add<false>(x[i], y[i], nullptr);
  }
  sums.power[0] = FitPack::all(static_cast<double>(batch.n));
  return sums;
}

template <int K>
PowerSums<K, FitPack> add_all(int64_t n, const FitPack* x, const FitPack* y, const FitPack* w) {
  PowerSums<K, FitPack> sums(x[0]);
  if (w) {
    for (int64_t i = n - 1; i >= 0; --i) sums.origin = if_zero(w[i], sums.origin, x[i]);
    for (int64_t i = 0; i < n; ++i) sums.template add<true>(x[i], y[i], w + i);
  } else {
    for (int64_t i = 0; i < n; ++i) sums.template add<false>(x[i], y[i], nullptr);
    sums.power[0] = FitPack::all(static_cast<double>(n));
  }
  return sums;
}

inline void gather(const Series& series, int64_t n, int64_t fit, int count, FitPack* into) {
  if (series.dtype == Dtype::Float32)
    gather_of<float>(series, n, fit, count, into);
  else
    gather_of<double>(series, n, fit, count, into);
}

// Samples with a nan or inf, or of weight 0, get weight 0 and harmless numbers.
inline void leave_out(int64_t n, bool omit, FitPack* x, FitPack* y, FitPack* w) {
  for (int64_t i = 0; i < n; ++i) {
    const FitPack sum = (y[i] - y[i]) + (x ? x[i] - x[i] : FitPack{});  // 0, or nan
    FitPack here = w[i];
    if (omit) here = if_zero(sum, here, FitPack{});
    y[i] = if_zero(here, FitPack{}, y[i]);
    if (x) x[i] = if_zero(here, FitPack{}, x[i]);
    w[i] = here;
  }
}

}  // namespace PF_ISA
}  // namespace polyfuse
