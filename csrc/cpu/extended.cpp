// Passes in double-double arithmetic: eight samples at a time, as everywhere. Compiled without
// contraction of a * b + c, which twofold.h needs.
#include <vector>

#include "../core/twofold.h"
#include "passes_isa.h"
#include "samples.h"

namespace polyfuse {
inline namespace PF_ISA {

#if defined(__AVX512F__) || defined(__FMA__) || defined(__FP_FAST_FMA)
PF_INLINE Pack product_error(const Pack& a, const Pack& b, const Pack& product) {
  Pack error;
  unroll<Pack::kParts>([&](auto i) PF_ALWAYS_INLINE {
#if defined(__AVX512F__)
    error.part[i] = Pack::Part(
        _mm512_fmsub_pd(__m512d(a.part[i]), __m512d(b.part[i]), __m512d(product.part[i])));
#elif defined(__FMA__)
    error.part[i] = Pack::Part(
        _mm256_fmsub_pd(__m256d(a.part[i]), __m256d(b.part[i]), __m256d(product.part[i])));
#else
    for (int lane = 0; lane < Pack::kPartLanes; ++lane)
      error.part[i][lane] = __builtin_fma(a.part[i][lane], b.part[i][lane], -product.part[i][lane]);
#endif
  });
  return error;
}
#else
// The upper 26 bits, by Veltkamp; then Dekker's product.
PF_INLINE Pack upper(const Pack& a) {
  const Pack spread = a * 134217729.0;
  return spread - (spread - a);
}
PF_INLINE Pack product_error(const Pack& a, const Pack& b, const Pack& product) {
  const Pack a_hi = upper(a), a_lo = a - a_hi, b_hi = upper(b), b_lo = b - b_hi;
  return ((a_hi * b_hi - product) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo;
}
#endif

namespace {

using RealPack = Twofold<Pack>;

// Writes the sum of the lanes, and goes on to the next.
void put(const RealPack& sum, double*& out) {
  Real all{};
  for (int lane = 0; lane < kLanes; ++lane) all += Real{sum.hi.lane(lane), sum.lo.lane(lane)};
  *out++ = all.hi;
  *out++ = all.lo;
}

// x and y as they are.
Data unscaled(Data data) {
  data.shift = 0.0;
  data.scale = 1.0;
  return data;
}

template <int K>
void moments_pass(const Data& data, const double* coef, int n_terms, int64_t begin, int64_t end,
                  double* out) {
  const int terms = K ? K : n_terms;
  RealPack power[K ? 2 * K - 1 : 2 * kMaxTerms - 1] = {}, cross[K ? K : kMaxTerms] = {}, square{};
  const Pack away = Pack::all(-data.shift), scale = Pack::all(data.scale);
  for_each_pack<false>(unscaled(data), begin, end, [&](Pack x, Pack y, auto weight) {
    const RealPack u = two_sum(x, away) * scale;
    RealPack r{Pack::all(coef[terms - 1]), Pack{}};
    for_terms<K ? K - 1 : 0>(terms - 1,
                             [&](auto k) { r = r * u + Pack::all(coef[terms - 2 - k]); });
    r = r + -y;
    RealPack product{ones(weight), Pack{}};
    square += r * r * product.hi;
    for_terms<K>(terms, [&](auto k) {
      power[k] += product;
      cross[k] += product * r;
      product = product * u;
    });
    for_terms<K ? K - 1 : 0>(terms - 1, [&](auto k) {
      power[terms + k] += product;
      if (k + 2 < terms) product = product * u;
    });
  });
  for (int k = 0; k < 2 * terms - 1; ++k) put(power[k], out);
  for (int k = 0; k < terms; ++k) put(cross[k], out);
  put(square, out);
}

// from[i], from[i + 1], ..., 0 past the end; 1 where from is null.
Pack column(const double* from, int64_t i, int64_t end) {
  if (from && i + kLanes <= end) return Pack::load(from + i);
  double lanes[kLanes] = {};
  for (int64_t j = i; j < i + kLanes && j < end; ++j) lanes[j - i] = from ? from[j] : 1.0;
  return Pack::load(lanes);
}

}  // namespace

void extended_moments(const Data& data, const double* coef, int n_terms, int64_t begin, int64_t end,
                      double* out) {
  with_usual_terms(n_terms,
                   [&](auto k) { moments_pass<k()>(data, coef, n_terms, begin, end, out); });
}

void extended_gram(const Columns& data, const double* coef, int64_t begin, int64_t end,
                   double* out) {
  const int terms = data.n_terms, n_gram = terms * (terms + 1) / 2;
  std::vector<RealPack> sums(n_gram + terms + 1), row(terms);
  for (int64_t i = begin; i < end; i += kLanes) {
    const Pack w = column(data.w, i, end);
    RealPack r{-column(data.y, i, end), Pack{}};
    for (int k = 0; k < terms; ++k) {
      row[k] = two_sum(column(data.x + k * data.n, i, end), Pack::all(-data.shift[k]));
      r += row[k] * Pack::all(coef[k]);
    }
    RealPack* sum = sums.data();
    for (int k = 0; k < terms; ++k) {
      const RealPack weighted = row[k] * w;
      for (int j = 0; j <= k; ++j) *sum++ += weighted * row[j];
    }
    for (int k = 0; k < terms; ++k) *sum++ += row[k] * w * r;
    *sum += r * w * r;
  }
  for (const RealPack& sum : sums) put(sum, out);
}

}  // namespace PF_ISA
}  // namespace polyfuse
