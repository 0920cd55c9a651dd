// Passes in double-double arithmetic: eight samples at a time, as everywhere. Compiled without
// contraction of a * b + c, which twofold.h needs.
#include <vector>

#include "../core/twofold.h"
#include "passes_isa.h"
#include "samples.h"

namespace polyfuse {
inline namespace PF_ISA {

using Lanes = PackOf<Pack::kPartLanes>;  // one register: sums of two numbers fill the others

#if defined(__AVX512F__) || defined(__FMA__) || defined(__FP_FAST_FMA)
PF_INLINE Lanes product_error(const Lanes& a, const Lanes& b, const Lanes& product) {
  Lanes error;
#if defined(__AVX512F__)
  error.part[0] = Lanes::Part(
      _mm512_fmsub_pd(__m512d(a.part[0]), __m512d(b.part[0]), __m512d(product.part[0])));
#elif defined(__FMA__)
  error.part[0] = Lanes::Part(
      _mm256_fmsub_pd(__m256d(a.part[0]), __m256d(b.part[0]), __m256d(product.part[0])));
#else
  for (int lane = 0; lane < Lanes::kPartLanes; ++lane)
    error.part[0][lane] = __builtin_fma(a.part[0][lane], b.part[0][lane], -product.part[0][lane]);
#endif
  return error;
}
#else
// The upper 26 bits, by Veltkamp; then Dekker's product.
PF_INLINE Lanes upper(const Lanes& a) {
  const Lanes spread = a * 134217729.0;
  return spread - (spread - a);
}
PF_INLINE Lanes product_error(const Lanes& a, const Lanes& b, const Lanes& product) {
  const Lanes a_hi = upper(a), a_lo = a - a_hi, b_hi = upper(b), b_lo = b - b_hi;
  return ((a_hi * b_hi - product) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo;
}
#endif

namespace {

using RealLanes = Twofold<Lanes>;
constexpr int kParts = Pack::kParts;

struct Sum {
  RealLanes part[kParts] = {};
};

// Writes the sum of the lanes of all parts, and goes on to the next.
void put(const Sum& sum, double*& out) {
  Real all{};
  for (const RealLanes& part : sum.part)
    for (int lane = 0; lane < Lanes::kPartLanes; ++lane)
      all += Real{part.hi.lane(lane), part.lo.lane(lane)};
  *out++ = all.hi;
  *out++ = all.lo;
}

PF_INLINE Lanes part_of(const Pack& pack, int part) {
  Lanes lanes;
  lanes.part[0] = pack.part[part];
  return lanes;
}
PF_INLINE Lanes part_of(std::true_type, int) { return Lanes::all(1.0); }

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
  Sum power[K ? 2 * K - 1 : 2 * kMaxTerms - 1], cross[K ? K : kMaxTerms], square;
  const Lanes away = Lanes::all(-data.shift), scale = Lanes::all(data.scale);
  for_each_pack<false>(unscaled(data), begin, end, [&](Pack x, Pack y, auto weight) {
    for (int part = 0; part < kParts; ++part) {
      const RealLanes u = two_sum(part_of(x, part), away) * scale;
      RealLanes r{Lanes::all(coef[terms - 1]), Lanes{}};
      for_terms<K ? K - 1 : 0>(terms - 1,
                               [&](auto k) { r = r * u + Lanes::all(coef[terms - 2 - k]); });
      r = r + -part_of(y, part);
      RealLanes product{part_of(weight, part), Lanes{}};
      square.part[part] += r * r * product.hi;
      for_terms<K>(terms, [&](auto k) {
        power[k].part[part] += product;
        cross[k].part[part] += product * r;
        product = product * u;
      });
      for_terms<K ? K - 1 : 0>(terms - 1, [&](auto k) {
        power[terms + k].part[part] += product;
        if (k + 2 < terms) product = product * u;
      });
    }
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
  std::vector<Sum> sums(n_gram + terms + 1);
  std::vector<RealLanes> row(terms);
  for (int64_t i = begin; i < end; i += kLanes) {
    for (int part = 0; part < kParts; ++part) {
      const Lanes w = part_of(column(data.w, i, end), part);
      RealLanes r{-part_of(column(data.y, i, end), part), Lanes{}};
      for (int k = 0; k < terms; ++k) {
        const Lanes x = part_of(column(data.x + k * data.n, i, end), part);
        row[k] = two_sum(x, Lanes::all(-data.shift[k]));
        r += row[k] * Lanes::all(coef[k]);
      }
      Sum* sum = sums.data();
      for (int k = 0; k < terms; ++k) {
        const RealLanes weighted = row[k] * w;
        for (int j = 0; j <= k; ++j) sum++->part[part] += weighted * row[j];
      }
      for (int k = 0; k < terms; ++k) sum++->part[part] += row[k] * w * r;
      sum->part[part] += r * w * r;
    }
  }
  for (const Sum& sum : sums) put(sum, out);
}

}  // namespace PF_ISA
}  // namespace polyfuse
