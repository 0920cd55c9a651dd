// Loops over samples, eight at a time whatever the register width, in float64: lanes and order of
// every sum are the same on every machine.
#pragma once

#include <type_traits>

#include "../core/problem.h"
#include "elementary.h"

namespace polyfuse {
inline namespace PF_ISA {

// Bytes: a page ahead, which is where the hardware's own prefetching stops.
constexpr int kPrefetch = 4096;

template <class T>
PF_INLINE void prefetch(const T* from) {
  __builtin_prefetch(reinterpret_cast<const char*>(from) + kPrefetch);
}

inline bool finite(double v) { return v - v == 0.0; }

// Up to eight samples at any stride; what is left out (past the end, or not finite) has weight 0
// and lies at the shift.
template <class T>
inline void load_weighted(const Data& data, int64_t i, int64_t end, Pack& x, Pack& y, Pack& w) {
  const T* xs = static_cast<const T*>(data.x);
  const T* ys = static_cast<const T*>(data.y);
  const T* ws = static_cast<const T*>(data.w);
  double x_lane[kLanes], y_lane[kLanes], w_lane[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t j = i + lane;
    double xj = data.shift, yj = 0.0, wj = 0.0;
    if (j < end) {
      xj = xs[j * data.x_stride];
      if (ys) yj = ys[j * data.y_stride];
      wj = ws ? ws[j * data.w_stride] : 1.0;
      if (wj == 0.0 || (data.omit && !(finite(xj) && finite(yj)))) {
        xj = data.shift;
        yj = wj = 0.0;
      }
    }
    x_lane[lane] = xj;
    y_lane[lane] = yj;
    w_lane[lane] = wj;
  }
  x = Pack::load(x_lane);
  y = Pack::load(y_lane);
  w = Pack::load(w_lane);
}

// Eight neighbours with weights of their own.
template <class T>
PF_INLINE void load_neighbours(const Data& data, int64_t i, Pack& x, Pack& y, Pack& w) {
  w = Pack::load(static_cast<const T*>(data.w) + i);
  x = if_zero(w, Pack::all(data.shift), Pack::load(static_cast<const T*>(data.x) + i));
  y = if_zero(w, Pack{}, Pack::load(static_cast<const T*>(data.y) + i));
}

// Whether samples are neighbours in memory; and count alike.
inline bool are_neighbours(const Data& data) {
  return data.x_stride == 1 && data.y_stride == 1 && data.w_stride == 1;
}
inline bool is_whole(const Data& data) { return are_neighbours(data) && !data.omit && !data.w; }

// Calls body(u, y, weight) for every eight samples; weight is std::true_type where all count, and
// y is 0 where not WithY. Plain: with a loop of its own for u = x.
template <class T, bool WithY, bool Plain = true, class Body>
PF_INLINE void for_each_pack_of(const Data& data, int64_t begin, int64_t end, Body&& body) {
  int64_t i = begin;
  const T* xs = static_cast<const T*>(data.x);
  const T* ys = static_cast<const T*>(data.y);
  const double shift = data.shift, scale = data.scale;
  const auto dense = [&](auto variable) PF_ALWAYS_INLINE {
    for (; i + kLanes <= end; i += kLanes) {
      prefetch(xs + i);
      Pack y{};
      if constexpr (WithY) {
        prefetch(ys + i);
        y = Pack::load(ys + i);
      }
      body(variable(Pack::load(xs + i)), y, std::true_type{});
    }
  };
  if (is_whole(data)) {
    if (Plain && shift == 0.0 && scale == 1.0)
      dense([](Pack x) PF_ALWAYS_INLINE { return x; });
    else
      dense([&](Pack x) PF_ALWAYS_INLINE { return (x - shift) * scale; });
  }
  const bool neighbours = WithY && are_neighbours(data) && data.w && !data.omit;
  for (; i < end; i += kLanes) {
    Pack x, y, w;
    if (neighbours && i + kLanes <= end)
      load_neighbours<T>(data, i, x, y, w);
    else
      load_weighted<T>(data, i, end, x, y, w);
    body((x - data.shift) * data.scale, y, w);
  }
}

template <bool Plain = true, class Body>
PF_INLINE void for_each_pack(const Data& data, int64_t begin, int64_t end, Body&& body) {
  if (data.dtype == Dtype::Float32)
    for_each_pack_of<float, true, Plain>(data, begin, end, body);
  else
    for_each_pack_of<double, true, Plain>(data, begin, end, body);
}

template <class Lanes>
PF_INLINE Lanes weighted(Lanes v, std::true_type) {
  return v;
}
PF_INLINE Pack weighted(Pack v, Pack w) { return v * w; }
PF_INLINE Pack ones(std::true_type) { return Pack::all(1.0); }
PF_INLINE Pack ones(Pack w) { return w; }

// Calls f with n_terms as a compile-time constant up to 8, and as 0 (read it at run time) beyond.
template <class F>
inline void with_terms(int n_terms, F&& f) {
  switch (n_terms) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 5: return f(std::integral_constant<int, 5>{});
    case 6: return f(std::integral_constant<int, 6>{});
    case 7: return f(std::integral_constant<int, 7>{});
    case 8: return f(std::integral_constant<int, 8>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

constexpr bool usual(int n_terms) { return n_terms >= 2 && n_terms <= 4; }

// The same for the most usual degrees alone: less code.
template <class F>
inline void with_usual_terms(int n_terms, F&& f) {
  switch (n_terms) {
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

}  // namespace PF_ISA
}  // namespace polyfuse
