#include "stacked.h"

#include <algorithm>
#include <type_traits>

#include "../element.h"
#include "batch_descent.h"
#include "passes_isa.h"

namespace polyfuse {
inline namespace PF_ISA {
namespace {

// What all outputs share: one number for every sample.
struct Shared {
  const Series& of;
  int64_t first;
  PF_INLINE double operator[](int64_t i) const {
    return read(of.dtype, of.at, (first + i) * of.sample);
  }
};

// Neighbours in every row of numbers [N, C]; past the end of a row, those of the next.
struct Rows {
  const Series& of;
  int64_t first, size;  // size: of all rows
  explicit operator bool() const { return of.at; }
  PF_INLINE FitPack operator[](int64_t i) const {
    const int64_t at = i * of.sample + first;
    return load_row(of.at, of.dtype, at, static_cast<int>(std::min<int64_t>(kFitLanes, size - at)));
  }
};

template <class Of>
struct Variable {
  Of x;
  double shift, scale;
  PF_INLINE auto operator[](int64_t i) const { return (x[i] - shift) * scale; }
};

}  // namespace

// out: [K, C] sums of w slope phi, [C] of w value, [C] of w
void stacked_loss(const Stacked& s, const double* coef, int64_t first, int64_t last, int64_t begin,
                  int64_t end, double* out) {
  const int64_t outputs = s.n_outputs, samples = end - begin;
  const FitPack one = FitPack::all(1.0);
  const auto rows = [&](const Series& of, int64_t c) {
    return Rows{of, begin * of.sample + c, s.n * outputs};
  };
  const auto abreast = [&](auto rho, auto n_terms, auto u, int64_t c) {
    constexpr int K = n_terms();
    const int count = static_cast<int>(std::min<int64_t>(kFitLanes, last - c));
    const Rows y = rows(s.y, c), w = rows(s.w, c);
    FitPack p[K ? K : kMaxTerms], grad[K ? K : kMaxTerms], weight{};
    for (int k = 0; k < s.n_terms; ++k) p[k] = load_row(coef + k * outputs + c, count);
    const FromData<decltype(rho), K, decltype(u), Rows> of_data{s.n_terms,   samples, u,  y, w,
                                                                s.criterion, s.basis, one};
    const FitPack value = of_data(p, grad);
    if (w)
      for (int64_t i = 0; i < samples; ++i) weight += w[i];
    else
      weight = FitPack::all(static_cast<double>(samples));
    double* const at = out + c;
    for (int k = 0; k < s.n_terms; ++k) store_row(grad[k], at + k * outputs, count);
    store_row(value, at + s.n_terms * outputs, count);
    store_row(weight, at + (s.n_terms + 1) * outputs, count);
  };
  const auto run = [&](auto rho, auto n_terms) {
    for (int64_t c = first; c < last; c += kFitLanes)
      if (s.x.fit == 0)
        abreast(rho, n_terms, Variable<Shared>{{s.x, begin}, s.shift, s.scale}, c);
      else
        abreast(rho, n_terms, Variable<Rows>{rows(s.x, c), s.shift, s.scale}, c);
  };
  with_rho(s.criterion.kind, [&](auto rho) {
    if constexpr (std::is_same_v<decltype(rho), SquaredError>)
      with_usual_terms(s.n_terms, [&](auto n_terms) { run(rho, n_terms); });
    else
      run(rho, std::integral_constant<int, 0>{});
  });
}

}  // namespace PF_ISA
}  // namespace polyfuse
