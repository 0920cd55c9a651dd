#include "../core/basis.h"
#include "../core/criterion.h"
#include "passes_isa.h"
#include "samples.h"

namespace polyfuse {
inline namespace PF_ISA {
namespace {

// Value or slope times the weight; 0 for samples left out, where it may be nan or inf.
template <class Rho, class Weight>
PF_INLINE Pack counted(Pack v, Weight w) {
  if constexpr (std::is_same<Weight, std::true_type>::value ||
                std::is_same<Rho,
                             SquaredError>::value)  // few registers, and the product takes none
    return weighted(v, w);
  else
    return if_zero(w, Pack{}, v * w);
}
template <class Rho, int K>
void loss_pass(const Data& data, const Criterion& criterion, const double* coef, int n_terms,
               int64_t begin, int64_t end, double* out) {
  const int terms = K ? K : n_terms;
  Pack value{}, count{}, sums[K ? K : kMaxTerms] = {};
  int64_t whole = 0;  // samples of packs without weights
  for_each_pack<std::is_same_v<Rho, SquaredError>>(
      data, begin, end, [&](Pack u, Pack y, auto w) PF_ALWAYS_INLINE {
        const auto rho = Rho::at(horner(coef, terms, u), y, criterion);
        value += counted<Rho>(rho.value, w);
        Pack product = counted<Rho>(rho.slope, w);
        for_terms<K>(terms, [&](auto k) {
          sums[k] += product;
          if (k + 1 < terms) product *= u;
        });
        if (std::is_same<decltype(w), std::true_type>::value)
          whole += kLanes;
        else
          count += ones(w);
      });
  out[0] = value.total();
  for_terms<K>(terms, [&](auto k) { out[1 + k] = Rho::kFactor * sums[k].total(); });
  out[1 + terms] = count.total() + static_cast<double>(whole);
}

// The same in float32, sums of so many samples going into sums in float64. Neighbours in memory
// that all count, plain variable: what float32 data of a usual fit is.
constexpr int64_t kShortSum = 32 * kSingleLanes;

template <class Rho, class = void>
struct HasExponent : std::false_type {};
template <class Rho>
struct HasExponent<Rho, std::void_t<decltype(Rho::exponent(0.0, 0.0))>> : std::true_type {};

template <class Rho, int K>
void loss_pass_single(const Data& data, const Criterion& criterion, const double* coef, int n_terms,
                      int64_t begin, int64_t end, double* out) {
  const int terms = K ? K : n_terms;
  const float* xs = static_cast<const float*>(data.x);
  const float* ys = static_cast<const float*>(data.y);
  Pack value{}, sums[K ? K : kMaxTerms] = {};
  int64_t i = begin;
  for (; i + kShortSum <= end; i += kShortSum) {
    Single short_value{}, short_sums[K ? K : kMaxTerms] = {};
    // A chain of operations that is longer than what a core looks ahead is computed in two parts.
    Single e[HasExponent<Rho>::value ? kShortSum / kSingleLanes : 1];
    if constexpr (HasExponent<Rho>::value)
      for (int64_t j = i; j < i + kShortSum; j += kSingleLanes) {
        prefetch(xs + j);
        prefetch(ys + j);
        const Single x = Single::load(xs + j), y = Single::load(ys + j);
        e[(j - i) / kSingleLanes] = exp(Rho::exponent(horner(coef, terms, x), y));
      }
    for (int64_t j = i; j < i + kShortSum; j += kSingleLanes) {
      const Single x = Single::load(xs + j), y = Single::load(ys + j);
      ValueAndSlope<Single> rho;
      if constexpr (HasExponent<Rho>::value) {
        rho = Rho::of(e[(j - i) / kSingleLanes], horner(coef, terms, x), y, criterion);
      } else {
        prefetch(xs + j);
        prefetch(ys + j);
        rho = Rho::at(horner(coef, terms, x), y, criterion);
      }
      short_value += rho.value;
      Single product = rho.slope;
      for_terms<K>(terms, [&](auto k) PF_ALWAYS_INLINE {
        short_sums[k] += product;
        if (k + 1 < terms) product *= x;
      });
    }
    value += short_value.folded();
    for_terms<K>(terms, [&](auto k) { sums[k] += short_sums[k].folded(); });
  }
  loss_pass<Rho, K>(data, criterion, coef, n_terms, i, end, out);
  out[0] += value.total();
  for_terms<K>(terms, [&](auto k) { out[1 + k] += Rho::kFactor * sums[k].total(); });
  out[1 + terms] += static_cast<double>(i - begin);
}

}  // namespace

void loss(const Data& data, const Criterion& criterion, const double* coef, int n_terms,
          bool single, int64_t begin, int64_t end, double* out) {
  const auto run = [&](auto rho, auto k) {
    const auto pass = single ? loss_pass_single<decltype(rho), k()> : loss_pass<decltype(rho), k()>;
    pass(data, criterion, coef, n_terms, begin, end, out);
  };
  with_rho(criterion.kind, [&](auto rho) {
    const auto of = [&](auto k) { run(rho, k); };
    if constexpr (std::is_same_v<decltype(rho), SquaredError>)
      with_terms(n_terms, of);
    else
      with_usual_terms(n_terms, of);
  });
}

}  // namespace PF_ISA
}  // namespace polyfuse
