// Eight fits in the lanes of packs: what goes in and out of them, and their updates.
#pragma once

#include <algorithm>

#include "batch.h"
#include "samples.h"

namespace polyfuse {
inline namespace PF_ISA {

// Eight numbers of a row [B], as float or double; lanes past the end repeat the last.
template <class T>
PF_INLINE Pack load_row(const T* row, int count) {
  if (count == kLanes) return Pack::load(row);
  double lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = row[std::min(i, count - 1)];
  return Pack::load(lane);
}
template <class T>
PF_INLINE void store_row(Pack value, T* row, int count) {
  if constexpr (std::is_floating_point<T>::value)
    if (count == kLanes) return value.store(row);
  double lane[kLanes];
  value.store(lane);
  for (int i = 0; i < count; ++i) row[i] = static_cast<T>(lane[i]);
}
inline Pack with_lane(Pack pack, int i, double value) {
  double lane[kLanes];
  pack.store(lane);
  lane[i] = value;
  return Pack::load(lane);
}
inline Pack load_row(const void* rows, Dtype dtype, int64_t at, int count) {
  return dtype == Dtype::Float32 ? load_row(static_cast<const float*>(rows) + at, count)
                                 : load_row(static_cast<const double*>(rows) + at, count);
}
inline void store_row(Pack value, void* rows, Dtype dtype, int64_t at, int count) {
  if (dtype == Dtype::Float32)
    store_row(value, static_cast<float*>(rows) + at, count);
  else
    store_row(value, static_cast<double*>(rows) + at, count);
}

// Parameters of eight fits and what the rule keeps of them.
struct Lanes {
  Pack p[kMaxTerms], grad[kMaxTerms], kept[kKept][kMaxTerms];
  Pack loss{}, epochs{}, active = Pack::all(1.0);
  Pack start_loss{};
};

template <int K>
PF_INLINE void update(const LinearStep& step, int n_terms, const Pack* grad, Lanes& s) {
  for_terms<K>(n_terms, [&](int j) PF_ALWAYS_INLINE {
    Pack &p = s.p[j], &buffer = s.kept[Sgd::kBuffer][j];
    const Pack moved = p * step.p_p + grad[j] * step.p_g + buffer * step.p_b;
    const Pack filled = p * step.b_p + grad[j] * step.b_g + buffer * step.b_b;
    p = if_zero(s.active, p, moved);
    buffer = if_zero(s.active, buffer, filled);
  });
}

// Fit by fit, those that go on.
inline void update(const UpdateRule& rule, int n_terms, const Pack* grad, Lanes& s) {
  for (int j = 0; j < n_terms; ++j) {
    double p[kLanes], g[kLanes], kept[kKept][kLanes];
    s.p[j].store(p);
    grad[j].store(g);
    for (int r = 0; r < kKept; ++r) s.kept[r][j].store(kept[r]);
    for (int i = 0; i < kLanes; ++i) {
      if (s.active.lane(i) == 0.0) continue;
      double of_one[kKept];
      for (int r = 0; r < kKept; ++r) of_one[r] = kept[r][i];
      polyfuse::update(rule, p[i], g[i], of_one);
      for (int r = 0; r < kKept; ++r) kept[r][i] = of_one[r];
    }
    s.p[j] = Pack::load(p);
    for (int r = 0; r < kKept; ++r) s.kept[r][j] = Pack::load(kept[r]);
  }
}

struct Recorder {
  double* next;  // [M, B], at the fits
  int64_t stride;
  int count;
  void operator()(Pack loss) {
    store_row(loss, next, count);
    next += stride;
  }
};

inline bool any_goes_on(const Lanes& s) {
  bool any = false;
  for (int i = 0; i < kLanes; ++i) any = any || s.active.lane(i) != 0.0;
  return any;
}

}  // namespace PF_ISA
}  // namespace polyfuse
