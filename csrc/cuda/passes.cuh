// What one thread does of a pass over samples: loads of 16 bytes, and sums in float64 registers.
// K is the size of a bucket; coefficients beyond those of the polynomial are 0.
#pragma once

#include <type_traits>

#include "../core/basis.h"
#include "../core/criterion.h"
#include "macros.h"

namespace polyfuse {

PF_DEVICE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

PF_DEVICE bool finite(double v) { return v - v == 0.0; }

template <class T>
struct alignas(16) Vector {
  static constexpr int kWidth = 16 / sizeof(T);
  T at[kWidth];
};

PF_DEVICE bool aligned(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

template <class T>
struct Samples {
  const T* x;
  const T* y;
  const T* w;  // null: 1 everywhere
  int64_t n, x_stride, y_stride, w_stride;

  static PF_DEVICE Samples of(const Data& data) {
    return {static_cast<const T*>(data.x),
            static_cast<const T*>(data.y),
            static_cast<const T*>(data.w),
            data.n,
            data.x_stride,
            data.y_stride,
            data.w_stride};
  }
  PF_DEVICE Samples part(int64_t begin, int64_t end) const {
    return {x + begin * x_stride,
            y + begin * y_stride,
            w ? w + begin * w_stride : nullptr,
            end - begin,
            x_stride,
            y_stride,
            w_stride};
  }
  PF_DEVICE T weight(int64_t i) const { return w ? w[i * w_stride] : T(1); }
};

constexpr int64_t kPilot = 1024;  // samples of the pilot fit, at least, where there are so many

// One sample of `every`.
PF_DEVICE Data thinned(const Data& data, int64_t every) {
  Data pilot = data;
  pilot.n = (data.n + every - 1) / every;
  pilot.x_stride *= every;
  pilot.y_stride *= every;
  pilot.w_stride *= every;
  pilot.omit = true;
  return pilot;
}

PF_DEVICE Data pilot_of(const Data& data, int64_t samples = kPilot) {
  return thinned(data, data.n < samples ? 1 : data.n / samples);
}

// Whether some samples may be left out, so that those that count are to be counted.
PF_DEVICE bool counted(const Data& data) { return data.omit || data.w; }

// The threads that share a pass.
struct Ranks {
  int64_t rank, count;

  static PF_DEVICE Ranks block() { return {threadIdx.x, blockDim.x}; }
  static PF_DEVICE Ranks grid() {
    return {int64_t(blockIdx.x) * blockDim.x + threadIdx.x, int64_t(gridDim.x) * blockDim.x};
  }
};

// f(x, y, weight) for the whole vectors of this thread, `Flight` of each on their way at a time;
// Weighted: there may be weights.
template <int Flight, bool Weighted, class T, class F>
PF_DEVICE void for_each_vector(const Samples<T>& s, Ranks ranks, F&& f) {
  using Pack = Vector<T>;
  const Pack* const xs = reinterpret_cast<const Pack*>(s.x);
  const Pack* const ys = reinterpret_cast<const Pack*>(s.y);
  const Pack* const ws = reinterpret_cast<const Pack*>(s.w);
  const int64_t whole = s.n / Pack::kWidth;
  for (int64_t v = ranks.rank; v < whole; v += ranks.count * Flight) {
    Pack x[Flight], y[Flight], w[Flight];
    PF_UNROLL
    for (int i = 0; i < Flight; ++i)
      if (v + i * ranks.count < whole) {
        x[i] = xs[v + i * ranks.count];
        y[i] = ys[v + i * ranks.count];
        if (Weighted && ws) w[i] = ws[v + i * ranks.count];
      }
    PF_UNROLL
    for (int i = 0; i < Flight; ++i)
      if (v + i * ranks.count < whole) {
        PF_UNROLL
        for (int j = 0; j < Pack::kWidth; ++j)
          f(x[i].at[j], y[i].at[j], Weighted && ws ? w[i].at[j] : T(1));
      }
  }
}

// f(x, y, weight) for the samples of this thread; Flight 0: f is long, and compiled less often.
template <int Flight, class T, class F>
PF_DEVICE void for_each_sample(const Samples<T>& s, Ranks ranks, F&& f) {
  const bool whole = s.x_stride == 1 && s.y_stride == 1 && aligned(s.x) && aligned(s.y) &&
                     (!s.w || (s.w_stride == 1 && aligned(s.w)));
  if (whole && (s.w || Flight == 0)) {
    for_each_vector<1, true>(s, ranks, f);
  } else if constexpr (Flight > 0) {
    if (whole) for_each_vector<Flight, false>(s, ranks, f);
  }
  // Samples on their way; float64 leaves no registers to them.
  constexpr int width = Flight == 0 || sizeof(T) == sizeof(double) ? 1 : 4;
  const int64_t begin = whole ? s.n / Vector<T>::kWidth * Vector<T>::kWidth : 0;
  for (int64_t i = begin + ranks.rank; i < s.n; i += ranks.count * width) {
    T x[width], y[width], w[width];
    PF_UNROLL
    for (int j = 0; j < width; ++j)
      if (const int64_t at = i + j * ranks.count; at < s.n)
        x[j] = s.x[at * s.x_stride], y[j] = s.y[at * s.y_stride], w[j] = s.weight(at);
    PF_UNROLL
    for (int j = 0; j < width; ++j)
      if (i + j * ranks.count < s.n) f(x[j], y[j], w[j]);
  }
}

constexpr int kShort = 8;  // beyond, arithmetic takes longer than loads

template <int K>
PF_DEVICE void take_coefficients(const double* from, int n_terms, double (&coef)[K]) {
  PF_UNROLL
  for (int k = 0; k < K; ++k) coef[k] = k < n_terms ? from[k] : 0.0;
}

// sums of w value, K of w slope * u^k, and of w
template <class Rho, int K>
struct LossSums {
  static constexpr int kSums = K + 2;
  // The long code of the others leaves fewer registers to samples on their way.
  static constexpr int kInFlight = K > kShort ? 0 : std::is_same_v<Rho, SquaredError> ? 8 : 4;
  const Criterion& criterion;
  double coef[K], sum[kSums] = {};

  PF_DEVICE explicit LossSums(const Criterion& c) : criterion(c) {}
  PF_DEVICE void add(double u, double y, double w) {
    const auto rho = Rho::at(horner(coef, K, u), y, criterion);
    sum[0] += w * rho.value;
    double product = w * (Rho::kFactor * rho.slope);
    PF_UNROLL
    for (int k = 0; k < K; ++k) {
      sum[1 + k] += product;
      product *= u;
    }
  }
  PF_DEVICE void count(double w) { sum[K + 1] += w; }
};

// 2 K - 1 sums of w u^k, K of w u^k r, and of w r^2
template <int K>
struct MomentSums {
  static constexpr int kSums = 3 * K;
  static constexpr int kInFlight = K > kShort ? 0 : 16;
  double coef[K], sum[kSums] = {};

  PF_DEVICE void add(double u, double y, double w) {
    const double r = horner(coef, K, u) - y;
    double product = w * u;
    sum[2 * K - 1] += w * r;
    sum[3 * K - 1] += w * r * r;
    PF_UNROLL
    for (int k = 1; k < 2 * K - 1; ++k) {
      sum[k] += product;
      if (k < K) sum[2 * K - 1 + k] += product * r;
      product *= u;
    }
  }
  PF_DEVICE void count(double w) { sum[0] += w; }
};

// K sums of y u^k
template <int K>
struct ProjectSums {
  static constexpr int kSums = K;
  static constexpr int kInFlight = K > kShort ? 0 : 8;
  double sum[kSums] = {};

  PF_DEVICE void add(double u, double y, double) {
    double product = y;
    PF_UNROLL
    for (int k = 0; k < K; ++k) {
      sum[k] += product;
      product *= u;
    }
  }
  PF_DEVICE void count(double) {}
};

// Adds the samples that count; those are counted one by one where some may be left out.
template <class T, class Sums>
PF_DEVICE void add_samples(const Data& data, const Samples<T>& samples, Ranks ranks, Sums& sums) {
  const double shift = data.shift, scale = data.scale;
  const bool omit = data.omit, count = counted(data);
  constexpr int width = Vector<T>::kWidth;
  constexpr int flight =
      Sums::kInFlight > width ? Sums::kInFlight / width : int(Sums::kInFlight > 0);
  for_each_sample<flight>(samples, ranks, [&](T x_raw, T y_raw, T w_raw) {
    const double x = x_raw, y = y_raw, w = w_raw;
    if (count) {
      if (w == 0.0 || (omit && !(finite(x) && finite(y)))) return;
      sums.count(w);
    }
    sums.add((x - shift) * scale, y, w);
  });
}

}  // namespace polyfuse
