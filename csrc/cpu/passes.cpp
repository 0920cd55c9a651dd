// The vectorised loops, compiled once per instruction set. Eight samples at a time, whatever the
// register width, in float64: lanes and order of every sum are the same on every machine.
#include "passes.h"

#include <type_traits>

#include "../core/basis.h"
#include "../core/criterion.h"

#define PF_JOIN_(a, b) a##b
#define PF_JOIN(a, b) PF_JOIN_(a, b)

namespace polyfuse {
inline namespace PF_ISA {
namespace {

constexpr int kLanes = 8;
typedef double Pack __attribute__((vector_size(64), aligned(8), may_alias));
typedef float PackF32 __attribute__((vector_size(32), aligned(4), may_alias));
typedef long long Mask __attribute__((vector_size(64), aligned(8)));

inline double total(Pack v) {
  double sum = 0.0;
  for (int lane = 0; lane < kLanes; ++lane) sum += v[lane];
  return sum;
}

inline Pack load(const float* p) {
  return __builtin_convertvector(*reinterpret_cast<const PackF32*>(p), Pack);
}
inline Pack load(const double* p) { return *reinterpret_cast<const Pack*>(p); }
inline void store(float* p, Pack v) {
  *reinterpret_cast<PackF32*>(p) = __builtin_convertvector(v, PackF32);
}
inline void store(double* p, Pack v) { *reinterpret_cast<Pack*>(p) = v; }

inline bool finite(double v) { return v - v == 0.0; }

// Up to eight samples at any stride; what is left out (past the end, or not finite) has weight 0.
template <class T>
inline void load_weighted(const Data& data, int64_t i, int64_t end, Pack& x, Pack& y, Pack& w) {
  const T* xs = static_cast<const T*>(data.x);
  const T* ys = static_cast<const T*>(data.y);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t j = i + lane;
    double xj = data.shift, yj = 0.0, wj = 0.0;
    if (j < end) {
      xj = xs[j * data.x_stride];
      if (ys) yj = ys[j * data.y_stride];
      wj = 1.0;
      if (data.omit && !(finite(xj) && finite(yj))) {
        xj = data.shift;
        yj = wj = 0.0;
      }
    }
    x[lane] = xj;
    y[lane] = yj;
    w[lane] = wj;
  }
}

// Calls body(u, y, weight) for every eight samples; weight is std::true_type where all count.
template <class T, class Body>
inline void for_each_pack_of(const Data& data, int64_t begin, int64_t end, Body&& body) {
  int64_t i = begin;
  if (data.x_stride == 1 && data.y_stride == 1 && !data.omit) {
    const T* xs = static_cast<const T*>(data.x);
    const T* ys = static_cast<const T*>(data.y);
    const double shift = data.shift, scale = data.scale;
    for (; i + kLanes <= end; i += kLanes)
      body((load(xs + i) - shift) * scale, ys ? load(ys + i) : Pack{}, std::true_type{});
  }
  for (; i < end; i += kLanes) {
    Pack x, y, w;
    load_weighted<T>(data, i, end, x, y, w);
    body((x - data.shift) * data.scale, y, w);
  }
}

template <class Body>
inline void for_each_pack(const Data& data, int64_t begin, int64_t end, Body&& body) {
  if (data.dtype == Dtype::Float32)
    for_each_pack_of<float>(data, begin, end, body);
  else
    for_each_pack_of<double>(data, begin, end, body);
}

inline Pack weighted(Pack v, std::true_type) { return v; }
inline Pack weighted(Pack v, Pack w) { return v * w; }
inline Pack ones(std::true_type) { return Pack{} + 1.0; }
inline Pack ones(Pack w) { return w; }

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

template <class Rho, int K>
void loss_pass(const Data& data, const double* coef, int n_terms, int64_t begin, int64_t end,
               double* out) {
  const int terms = K ? K : n_terms;
  Pack value{}, count{}, sums[K ? K : kMaxTerms] = {};
  for_each_pack(data, begin, end, [&](Pack u, Pack y, auto w) {
    const Pack r = horner(coef, terms, u) - y;
    value += weighted(Rho::value(r), w);
    Pack product = weighted(Rho::slope(r), w);
    for (int k = 0; k < terms; ++k) {
      sums[k] += product;
      if (k + 1 < terms) product *= u;
    }
    count += ones(w);
  });
  out[0] = total(value);
  for (int k = 0; k < terms; ++k) out[1 + k] = total(sums[k]);
  out[1 + terms] = total(count);
}

template <int K>
void moments_pass(const Data& data, const double* coef, int n_terms, int64_t begin, int64_t end,
                  double* out) {
  const int terms = K ? K : n_terms;
  Pack power[K ? 2 * K - 1 : 2 * kMaxTerms - 1] = {}, cross[K ? K : kMaxTerms] = {}, square{};
  for_each_pack(data, begin, end, [&](Pack u, Pack y, auto w) {
    const Pack r = weighted(horner(coef, terms, u) - y, w);
    Pack product = ones(w);
    for (int k = 0; k < 2 * terms - 1; ++k) {
      power[k] += product;
      if (k < terms) cross[k] += product * r;
      if (k + 2 < 2 * terms) product *= u;
    }
    square += r * r;
  });
  for (int k = 0; k < 2 * terms - 1; ++k) *out++ = total(power[k]);
  for (int k = 0; k < terms; ++k) *out++ = total(cross[k]);
  *out = total(square);
}

template <class T, int K>
void evaluate_pass(const Data& data, const double* coef, int n_terms, int64_t begin, int64_t end,
                   T* y) {
  int64_t i = begin;
  for_each_pack_of<T>(data, begin, end, [&](Pack u, Pack, auto) {
    const Pack value = horner(coef, K ? K : n_terms, u);
    if (i + kLanes <= end)
      store(y + i, value);
    else
      for (int lane = 0; i + lane < end; ++lane) y[i + lane] = T(value[lane]);
    i += kLanes;
  });
}

template <int K>
void project_pass(const Data& data, int n_terms, int64_t begin, int64_t end, double* out) {
  const int terms = K ? K : n_terms;
  Pack sums[K ? K : kMaxTerms] = {};
  for_each_pack(data, begin, end, [&](Pack u, Pack y, auto w) {
    Pack product = weighted(y, w);
    for (int k = 0; k < terms; ++k) {
      sums[k] += product;
      product *= u;
    }
  });
  for (int k = 0; k < terms; ++k) out[k] = total(sums[k]);
}

void loss(const Data& data, Criterion criterion, const double* coef, int n_terms, int64_t begin,
          int64_t end, double* out) {
  with_terms(n_terms, [&](auto k) {
    switch (criterion) {
      case Criterion::SquaredError:
        return loss_pass<SquaredError, k()>(data, coef, n_terms, begin, end, out);
    }
  });
}

void moments(const Data& data, const double* coef, int n_terms, int64_t begin, int64_t end,
             double* out) {
  with_terms(n_terms, [&](auto k) { moments_pass<k()>(data, coef, n_terms, begin, end, out); });
}

void evaluate(const Data& data, const double* coef, int n_terms, int64_t begin, int64_t end,
              void* y) {
  with_terms(n_terms, [&](auto k) {
    if (data.dtype == Dtype::Float32)
      evaluate_pass<float, k()>(data, coef, n_terms, begin, end, static_cast<float*>(y));
    else
      evaluate_pass<double, k()>(data, coef, n_terms, begin, end, static_cast<double*>(y));
  });
}

void project(const Data& data, int n_terms, int64_t begin, int64_t end, double* out) {
  with_terms(n_terms, [&](auto k) { project_pass<k()>(data, n_terms, begin, end, out); });
}

void count_nonfinite(const Data& data, int64_t begin, int64_t end, double* out) {
  Data all = data;
  all.omit = false;
  Pack bad{};
  for_each_pack(all, begin, end, [&](Pack u, Pack y, auto) {
    const Mask is_bad = ((u - u) + (y - y)) != 0.0;  // nan and inf both leave nan
    bad -= __builtin_convertvector(is_bad, Pack);
  });
  out[0] = total(bad);
}

}  // namespace
}  // namespace PF_ISA

const Passes PF_JOIN(passes_, PF_ISA) = {
    PF_ISA_NAME,      PF_ISA::loss,    PF_ISA::moments,
    PF_ISA::evaluate, PF_ISA::project, PF_ISA::count_nonfinite,
};

}  // namespace polyfuse
