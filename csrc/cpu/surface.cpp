#include "surface.h"

#include <algorithm>
#include <vector>

#include "../core/criterion.h"
#include "passes_isa.h"
#include "samples.h"

namespace polyfuse {
inline namespace PF_ISA {
namespace {

constexpr int kPacks = 16;  // whose terms stay in the first-level cache

template <class T>
PF_INLINE Pack load_eight(const Series& series, int64_t i, int count) {
  const T* from = static_cast<const T*>(series.at) + i * series.sample;
  if (count == kLanes && series.sample == 1) return Pack::load(from);
  double lane[kLanes];
  for (int j = 0; j < kLanes; ++j) lane[j] = from[std::min(j, count - 1) * series.sample];
  return Pack::load(lane);
}
PF_INLINE Pack load_eight(const Series& series, int64_t i, int count) {
  return series.dtype == Dtype::Float32 ? load_eight<float>(series, i, count)
                                        : load_eight<double>(series, i, count);
}

// Eight samples: y, weight (0 for what is left out) and terms, phi[k * stride].
PF_INLINE void load_terms(const Surface& s, int64_t i, int64_t end, Pack& y, Pack& w, Pack* phi,
                          int stride) {
  const int count = static_cast<int>(std::min<int64_t>(kLanes, end - i));
  Pack u[kMaxVariables];
  w = s.w.at ? load_eight(s.w, i, count) : Pack::all(1.0);
  if (count < kLanes) {
    double lane[kLanes];
    w.store(lane);
    std::fill(lane + count, lane + kLanes, 0.0);
    w = Pack::load(lane);
  }
  y = s.y.at ? load_eight(s.y, i, count) : Pack{};
  Pack nothing = y - y;  // 0, or nan
  for (int j = 0; j < s.n_variables; ++j) {
    const Series column{
        static_cast<const char*>(s.x.at) + j * s.x.fit * (s.x.dtype == Dtype::Float32 ? 4 : 8),
        s.x.sample, 0, s.x.dtype};
    u[j] = (load_eight(column, i, count) - s.shift[j]) * s.scale[j];
    nothing += u[j] - u[j];
  }
  if (s.omit) w = if_zero(nothing, w, Pack{});
  if (s.omit || s.w.at) {
    y = if_zero(w, Pack{}, y);
    for (int j = 0; j < s.n_variables; ++j) u[j] = if_zero(w, Pack{}, u[j]);
  }
  for (int k = 0; k < s.n_terms; ++k) {
    const Term term = s.terms[k];
    Pack value = term.parent < 0 ? Pack::all(1.0) : phi[term.parent * stride];
    if (term.variable >= 0) value *= u[term.variable];
    phi[k * stride] = value;
  }
}

PF_INLINE Pack predict(const Pack* phi, int stride, const double* coef, int n_terms) {
  Pack value{};
  for (int k = 0; k < n_terms; ++k) value += phi[k * stride] * coef[k];
  return value;
}

template <class Rho>
void loss_of(const Surface& s, const double* coef, int64_t begin, int64_t end, double* out) {
  Pack phi[kMaxSurfaceTerms], sums[kMaxSurfaceTerms] = {}, value{}, count{};
  for (int64_t i = begin; i < end; i += kLanes) {
    Pack y, w;
    load_terms(s, i, end, y, w, phi, 1);
    const auto rho = Rho::at(predict(phi, 1, coef, s.n_terms), y, s.criterion);
    const Pack slope = if_zero(w, Pack{}, w * rho.slope);
    value += if_zero(w, Pack{}, w * rho.value);
    count += w;
    for (int k = 0; k < s.n_terms; ++k) sums[k] += slope * phi[k];
  }
  out[0] = value.total();
  out[1] = count.total();
  for (int k = 0; k < s.n_terms; ++k) out[2 + k] = Rho::kFactor * sums[k].total();
}

// Moments that share phi[a], up to four of them.
template <int C>
PF_INLINE void add_products(const Product* product, const Pack* phi, const Pack* w, Pack* sums) {
  Pack sum[C];
  unroll<C>([&](auto c) PF_ALWAYS_INLINE { sum[c] = sums[product[c].moment]; });
  const Pack* a = phi + product->a * kPacks;
  for (int p = 0; p < kPacks; ++p) {
    const Pack weighted = w[p] * a[p];
    unroll<C>([&](auto c) PF_ALWAYS_INLINE { sum[c] += weighted * phi[product[c].b * kPacks + p]; });
  }
  unroll<C>([&](auto c) PF_ALWAYS_INLINE { sums[product[c].moment] = sum[c]; });
}

}  // namespace

// out: [value, sum of w, K sums of w slope phi]
void surface_loss(const Surface& s, const double* coef, int64_t begin, int64_t end, double* out) {
  switch (s.criterion.kind) {
    case CriterionKind::SquaredError: return loss_of<SquaredError>(s, coef, begin, end, out);
    case CriterionKind::AbsoluteError: return loss_of<AbsoluteError>(s, coef, begin, end, out);
    case CriterionKind::SmoothL1: return loss_of<SmoothL1>(s, coef, begin, end, out);
    case CriterionKind::Huber: return loss_of<Huber>(s, coef, begin, end, out);
    case CriterionKind::SoftMargin: return loss_of<SoftMargin>(s, coef, begin, end, out);
    case CriterionKind::BCEWithLogits: return loss_of<BCEWithLogits>(s, coef, begin, end, out);
    case CriterionKind::PoissonNLL: return loss_of<PoissonNLL>(s, coef, begin, end, out);
    case CriterionKind::KLDiv: return loss_of<KLDiv>(s, coef, begin, end, out);
    case CriterionKind::GaussianNLL: return loss_of<GaussianNLL>(s, coef, begin, end, out);
  }
}

// out: [sum w r^2, sum w, K sums of w phi r, M sums of w phi phi]
void surface_moments(const Surface& s, const double* coef, int64_t begin, int64_t end,
                     double* out) {
  const int terms = s.n_terms;
  std::vector<Pack> memory(static_cast<size_t>((terms + 1) * kPacks + s.n_pairs + terms));
  Pack* const phi = memory.data();
  Pack* const rest = phi + terms * kPacks;
  Pack *const sums = rest + kPacks, *const cross = sums + s.n_pairs;
  Pack square{}, count{}, w[kPacks];
  for (int64_t at = begin; at < end; at += kPacks * kLanes) {
    for (int p = 0; p < kPacks; ++p) {
      const int64_t i = at + p * kLanes;
      Pack y{};
      w[p] = Pack{};
      if (i < end) {
        load_terms(s, i, end, y, w[p], phi + p, kPacks);
        const Pack r = predict(phi + p, kPacks, coef, terms) - y;
        rest[p] = w[p] * r;
        square += rest[p] * r;
        count += w[p];
      } else {
        for (int k = 0; k < terms; ++k) phi[k * kPacks + p] = Pack{};
        rest[p] = Pack{};
      }
    }
    for (int k = 0; k < terms; ++k)
      for (int p = 0; p < kPacks; ++p) cross[k] += phi[k * kPacks + p] * rest[p];
    for (const Product *product = s.pairs, *last = product + s.n_pairs; product != last;) {
      int same = 1;
      while (same < 4 && product + same != last && product[same].a == product->a) ++same;
      switch (same) {
        case 1: add_products<1>(product, phi, w, sums); break;
        case 2: add_products<2>(product, phi, w, sums); break;
        case 3: add_products<3>(product, phi, w, sums); break;
        default: add_products<4>(product, phi, w, sums);
      }
      product += same;
    }
  }
  out[0] = square.total();
  out[1] = count.total();
  for (int k = 0; k < terms; ++k) out[2 + k] = cross[k].total();
  for (int m = 0; m < s.n_pairs; ++m) out[2 + terms + m] = sums[m].total();
}

void surface_evaluate(const Surface& s, const double* coef, int64_t begin, int64_t end, void* out) {
  Pack phi[kMaxSurfaceTerms];
  for (int64_t i = begin; i < end; i += kLanes) {
    Pack y, w;
    load_terms(s, i, end, y, w, phi, 1);
    double lane[kLanes];
    predict(phi, 1, coef, s.n_terms).store(lane);
    for (int j = 0; j < std::min<int64_t>(kLanes, end - i); ++j)
      if (s.x.dtype == Dtype::Float32)
        static_cast<float*>(out)[i + j] = static_cast<float>(lane[j]);
      else
        static_cast<double*>(out)[i + j] = lane[j];
  }
}

}  // namespace PF_ISA
}  // namespace polyfuse
