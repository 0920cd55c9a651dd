// A thread for every fit: its samples, on chip where they fit, and its orthogonal polynomials.
#pragma once

#include <cmath>

#include "../core/optimum.h"
#include "fits.h"
#include "passes.cuh"
#include "reduce.cuh"

namespace polyfuse {

template <class T>
struct Column {
  const T* at = nullptr;
  int64_t step = 0;
  PF_DEVICE T operator[](int64_t i) const { return at[i * step]; }
};

// Who goes through the samples of a fit: its thread, or for a design that fits share the block.
struct Single {
  PF_DEVICE int rank() const { return 0; }
  PF_DEVICE int size() const { return 1; }
  template <int S, class Fold>
  PF_DEVICE void fold(double (&)[S], Fold&&) const {}
};

struct Together {
  double* scratch;  // [(kFitThreads / kWarp + 1) * S], S <= 3
  PF_DEVICE int rank() const { return threadIdx.x; }
  PF_DEVICE int size() const { return blockDim.x; }
  template <int S, class Fold>
  PF_DEVICE void fold(double (&value)[S], Fold&& fold) const {
    double* const out = scratch + kFitThreads / kWarp * S;
    fold_block(value, scratch, out, fold);
    PF_UNROLL
    for (int s = 0; s < S; ++s) value[s] = out[s];
    __syncthreads();
  }
};
constexpr int kTogether = (kFitThreads / kWarp + 1) * 3;

// Samples of one fit.
template <class T>
struct Points {
  Column<T> x, y, w;
  int64_t n;
  bool omit;

  // f(x, y, w) for those that count.
  template <class Who, class F>
  PF_DEVICE void each(const Who& who, F&& f) const {
    if (!w.at && !omit) {
      for (int64_t i = who.rank(); i < n; i += who.size()) f(x[i], y[i], 1.0);
      return;
    }
    for (int64_t i = who.rank(); i < n; i += who.size()) {
      const T xi = x[i], yi = y[i];
      const double weight = w.at ? double(w[i]) : 1.0;
      if (weight == 0.0 || (omit && !(xi - xi == T(0) && yi - yi == T(0)))) continue;
      f(xi, yi, weight);
    }
  }
};

// The middle of the points that count and one over half their range, how many they are, and the
// sum of their weights.
struct Frame {
  double centre, scale, count, weight;

  template <class T, class Who>
  static PF_DEVICE Frame of(const Points<T>& points, const Who& who) {
    T low = INFINITY, high = -INFINITY;
    int64_t count = 0;
    double sums[2] = {};
    points.each(who, [&](T x, T, double w) {
      low = x < low ? x : low;
      high = x > high ? x : high;
      ++count;
      if (points.w.at) sums[1] += w;
    });
    sums[0] = static_cast<double>(count);
    double ends[2] = {-double(low), double(high)};
    who.fold(sums, [](double a, double b) { return a + b; });
    who.fold(ends, [](double a, double b) { return a > b ? a : b; });
    const double half = 0.5 * ends[1] + 0.5 * ends[0];
    return {sums[0] > 0.0 ? 0.5 * ends[1] - 0.5 * ends[0] : 0.0, half > 0.0 ? 1.0 / half : 1.0,
            sums[0], points.w.at ? sums[1] : sums[0]};
  }

  PF_DEVICE double operator()(double x) const { return (x - centre) * scale; }
};

// A fit, or the design that many share; M: terms that there is room for.
template <int M>
struct Fitted {
  Frame frame;
  Orthogonal<double, M> q;
  double factor[M * M];

  template <class T, class Who>
  PF_DEVICE void of(const Points<T>& points, const Fits& fits, int terms, const Who& who) {
    frame = Frame::of(points, who);
    orthogonalise(terms, frame.weight, q, [&](const auto& add, auto& sums) {
      points.each(who, [&](T x, T y, double w) { add(frame(x), y, w); });
      who.fold(sums, [](double a, double b) { return a + b; });
    });
    factorise(terms, fits.basis, q, fits.scale / frame.scale,
              (fits.shift - frame.centre) * frame.scale, factor);
  }
};

template <int M, class T>
PF_DEVICE int rank_of(const Points<T>& points, const Frame& frame, int terms) {
  Orthogonal<double, M> q;
  orthogonalise(terms, frame.weight, q, [&](const auto& add, auto&) {
    points.each(Single{}, [&](T x, T, double w) { add(frame(x), 0.0, w); });
  });
  return static_cast<int>(q.rank);
}

// What the orthonormal polynomials [n, K] of a design explain of the samples of a fit.
template <class T, int M>
PF_DEVICE void project(const Points<T>& points, const double* q, int terms, double (&along)[M],
                       double& rest) {
  PF_UNROLL
  for (int k = 0; k < terms; ++k) along[k] = 0.0;
  rest = 0.0;
  const double* row = q;
  const auto weight = [&](int64_t i) { return points.w.at ? double(points.w[i]) : 1.0; };
  for (int64_t i = 0; i < points.n; ++i, row += terms) {
    const double w = weight(i);
    if (w == 0.0) continue;
    const double y = w * points.y[i];
    PF_UNROLL
    for (int k = 0; k < terms; ++k) along[k] += y * row[k];
  }
  row = q;
  for (int64_t i = 0; i < points.n; ++i, row += terms) {
    const double w = weight(i);
    if (w == 0.0) continue;
    double left = points.y[i];
    PF_UNROLL
    for (int k = 0; k < terms; ++k) left -= along[k] * row[k];
    rest += w * left * left;
  }
}

// The column of this thread's fit among `count` from `first` on; with room on chip brought there,
// [n, threads + 1] or the one that all fits share. Neighbours in memory are read by neighbours.
template <class T>
PF_DEVICE Column<T> bring(const Series& series, int64_t n, int64_t first, int count, T*& room) {
  const T* const from = static_cast<const T*>(series.at) + first * series.fit;
  if (!series.at) return {};
  const int mine = static_cast<int>(threadIdx.x) < count ? threadIdx.x : count - 1;
  if (!room) return {from + mine * series.fit, series.sample};
  T* const to = room;
  const int pitch = series.fit == 0 ? 1 : blockDim.x + 1;
  room += n * pitch;
  if (series.fit == 0) {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) to[i] = from[i * series.sample];
    return {to, 1};
  }
  if (series.sample < series.fit) {
    const int size = static_cast<int>(n);
    for (int e = threadIdx.x; e < count * size; e += blockDim.x)
      to[e % size * pitch + e / size] = from[e / size * series.fit + e % size * series.sample];
  } else {
    const T* next = from + mine * series.fit;
#pragma unroll 8
    for (int64_t i = 0; i < n; ++i, next += series.sample) to[i * pitch + threadIdx.x] = *next;
  }
  return {to + mine, pitch};
}

// f(fit, its points) for every fit of this thread.
template <class T, class F>
PF_DEVICE void for_each_fit(const Fits& fits, char* shared, F&& f) {
  const int64_t threads = blockDim.x;
  for (int64_t first = blockIdx.x * threads; first < fits.fits; first += gridDim.x * threads) {
    const int count = static_cast<int>(least(threads, fits.fits - first));
    T* room = fits.on_chip ? reinterpret_cast<T*>(shared) : nullptr;
    Points<T> points{{}, {}, {}, fits.n, fits.omit};
    points.x = bring(fits.x, fits.n, first, count, room);
    points.y = bring(fits.y, fits.n, first, count, room);
    points.w = bring(fits.w, fits.n, first, count, room);
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < count) f(first + threadIdx.x, points);
    __syncthreads();
  }
}

// f(terms, as a constant where there are few), with a type of as much room.
template <class F>
void with_terms(int n_terms, F&& f) {
  switch (n_terms) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 5: return f(std::integral_constant<int, 5>{});
    default:
      if (n_terms <= kFewTerms) return f(std::integral_constant<int, kFewTerms>{});
      return f(std::integral_constant<int, kMaxFitTerms>{});
  }
}

}  // namespace polyfuse
