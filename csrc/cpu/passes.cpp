// The vectorised loops of one instruction set, and the table of them.
#include "../core/basis.h"
#include "passes_isa.h"
#include "samples.h"

#define PF_JOIN_(a, b) a##b
#define PF_JOIN(a, b) PF_JOIN_(a, b)

namespace polyfuse {
inline namespace PF_ISA {
namespace {

// Sums of w u^k, of w u^k r and of w r^2 over lanes of samples; power[0] where w is not 1 alone.
template <class Lanes, int K>
struct MomentSums {
  Lanes power[K ? 2 * K - 1 : 2 * kMaxTerms - 1] = {}, cross[K ? K : kMaxTerms] = {}, square{};

  template <class Weight>
  PF_INLINE void add(const double* coef, int terms, Lanes u, Lanes y, Weight w) {
    const Lanes r = horner(coef, terms, u) - y, with_weight = weighted(r, w);
    cross[0] += with_weight;
    square += with_weight * r;
    Lanes product = weighted(u, w), rising = u;
    for_terms<K ? K - 1 : 0>(terms - 1, [&](auto j) PF_ALWAYS_INLINE {
      const int k = j + 1;
      power[k] += product;
      cross[k] += product * r;
      if (k + 1 < terms) product *= u;
    });
    // u^(K - 1) u^j adds in one operation what a next power would take two for
    for_terms<K ? K - 1 : 0>(terms - 1, [&](auto j) PF_ALWAYS_INLINE {
      power[terms + j] += product * rising;
      rising *= u;
    });
  }

  // f(lanes of a, lanes of b) for every sum.
  template <class Other, class F>
  PF_INLINE void with(Other& other, F&& f) {
    unroll<2 * K - 1>([&](auto k) PF_ALWAYS_INLINE { f(power[k], other.power[k]); });
    unroll<K>([&](auto k) PF_ALWAYS_INLINE { f(cross[k], other.cross[k]); });
    f(square, other.square);
  }
};

constexpr int64_t kSweep = 1024;  // samples, which stay in first-level cache

// Where a pack's sums are too many for the registers: one register of lanes after the other, over
// so many samples at a time that they are still in cache. Returns where it stopped.
template <class T, int K>
int64_t sweep(const Data& data, const double* coef, int64_t begin, int64_t end,
              MomentSums<Pack, K>& sums) {
  constexpr int lanes = Pack::kPartLanes;
  using Lanes = PackOf<lanes>;
  const T* xs = static_cast<const T*>(data.x);
  const T* ys = static_cast<const T*>(data.y);
  const double shift = data.shift, scale = data.scale;
  for (; begin + kSweep <= end; begin += kSweep)
    for (int part = 0; part < Pack::kParts; ++part) {
      MomentSums<Lanes, K> own;
      own.with(sums,
               [&](Lanes& mine, Pack& all) PF_ALWAYS_INLINE { mine.part[0] = all.part[part]; });
      for (int64_t i = begin; i < begin + kSweep; i += kLanes) {
        if (part == 0) {
          prefetch(xs + i);
          prefetch(ys + i);
        }
        const Lanes x = Lanes::load(xs + i + part * lanes), y = Lanes::load(ys + i + part * lanes);
        own.add(coef, K, (x - shift) * scale, y, std::true_type{});
      }
      own.with(sums,
               [&](Lanes& mine, Pack& all) PF_ALWAYS_INLINE { all.part[part] = mine.part[0]; });
    }
  return begin;
}

template <int K>
void moments_pass(const Data& data, const double* coef, int n_terms, int64_t begin, int64_t end,
                  double* out) {
  const int terms = K ? K : n_terms;
  MomentSums<Pack, K> sums;
  int64_t whole = 0;  // samples of packs without weights
  if constexpr (Pack::kParts > 1 && K > 1 && K <= 5) {
    if (is_whole(data)) {
      whole = -begin;
      begin = data.dtype == Dtype::Float32 ? sweep<float, K>(data, coef, begin, end, sums)
                                           : sweep<double, K>(data, coef, begin, end, sums);
      whole += begin;
    }
  }
  for_each_pack(data, begin, end, [&](Pack u, Pack y, auto w) PF_ALWAYS_INLINE {
    if (std::is_same<decltype(w), std::true_type>::value)
      whole += kLanes;
    else
      sums.power[0] += ones(w);
    sums.add(coef, terms, u, y, w);
  });
  for_terms<K ? 2 * K - 1 : 0>(2 * terms - 1, [&](auto k) { out[k] = sums.power[k].total(); });
  out[0] += static_cast<double>(whole);
  for_terms<K>(terms, [&](auto k) { out[2 * terms - 1 + k] = sums.cross[k].total(); });
  out[3 * terms - 1] = sums.square.total();
}

template <class T, int K>
void evaluate_pass(const Data& data, const double* coef, int n_terms, int64_t begin, int64_t end,
                   T* y) {
  int64_t i = begin;
  for_each_pack_of<T, false>(data, begin, end, [&](Pack u, Pack, auto) PF_ALWAYS_INLINE {
    const Pack value = horner(coef, K ? K : n_terms, u);
    if (i + kLanes <= end)
      value.store(y + i);
    else
      for (int lane = 0; i + lane < end; ++lane) y[i + lane] = T(value.lane(lane));
    i += kLanes;
  });
}

template <int K>
void project_pass(const Data& data, int n_terms, int64_t begin, int64_t end, double* out) {
  const int terms = K ? K : n_terms;
  Pack sums[K ? K : kMaxTerms] = {};
  for_each_pack(data, begin, end, [&](Pack u, Pack y, auto w) PF_ALWAYS_INLINE {
    Pack product = weighted(y, w);
    for_terms<K>(terms, [&](auto k) {
      sums[k] += product;
      if (k + 1 < terms) product *= u;
    });
  });
  for_terms<K>(terms, [&](auto k) { out[k] = sums[k].total(); });
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
  all.omit = false;  // what has weight 0 is left out all the same
  Pack bad{};
  for_each_pack(all, begin, end, [&](Pack u, Pack y, auto) PF_ALWAYS_INLINE {
    const Pack nothing = (u - u) + (y - y);  // nan where u or y is nan or inf
    for (int i = 0; i < Pack::kParts; ++i)
      bad.part[i] -= __builtin_convertvector(nothing.part[i] != 0.0, Pack::Part);
  });
  out[0] = bad.total();
}

}  // namespace
}  // namespace PF_ISA

const Passes PF_JOIN(passes_, PF_ISA) = {
    PF_ISA_NAME,
    PF_ISA::loss,
    PF_ISA::moments,
    PF_ISA::evaluate,
    PF_ISA::project,
    PF_ISA::count_nonfinite,
    PF_ISA::resident,
    PF_ISA::batch_fits,
    PF_ISA::surface_loss,
    PF_ISA::surface_moments,
    PF_ISA::stacked_loss,
    PF_ISA::class_loss,
    PF_ISA::extended_moments,
    PF_ISA::extended_gram,
};

}  // namespace polyfuse
