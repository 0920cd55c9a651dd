#include "stacked.h"

#include <algorithm>

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

// Eight neighbours of every row of numbers [N, C]; past the end of a row, those of the next.
struct Rows {
  const Series& of;
  int64_t first, size;  // size: of all rows
  explicit operator bool() const { return of.at; }
  PF_INLINE Pack operator[](int64_t i) const {
    const int64_t at = i * of.sample + first;
    return load_row(of.at, of.dtype, at, static_cast<int>(std::min<int64_t>(kLanes, size - at)));
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
  const Pack one = Pack::all(1.0);
  const auto rows = [&](const Series& of, int64_t c) {
    return Rows{of, begin * of.sample + c, s.n * outputs};
  };
  const auto eight = [&](auto rho, auto u, int64_t c) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, last - c));
    const Rows y = rows(s.y, c), w = rows(s.w, c);
    Pack p[kMaxTerms], grad[kMaxTerms], weight{};
    for (int k = 0; k < s.n_terms; ++k) p[k] = load_row(coef + k * outputs + c, count);
    const FromData<decltype(rho), decltype(u), Rows> of_data{s.n_terms, samples,     u,       y,
                                                             w,         s.criterion, s.basis, one};
    const Pack value = of_data(p, grad);
    if (w)
      for (int64_t i = 0; i < samples; ++i) weight += w[i];
    else
      weight = Pack::all(static_cast<double>(samples));
    double* const at = out + c;
    for (int k = 0; k < s.n_terms; ++k) store_row(grad[k], at + k * outputs, count);
    store_row(value, at + s.n_terms * outputs, count);
    store_row(weight, at + (s.n_terms + 1) * outputs, count);
  };
  with_criterion(s.criterion.kind, [&](auto rho) {
    for (int64_t c = first; c < last; c += kLanes)
      if (s.x.fit == 0)
        eight(rho, Variable<Shared>{{s.x, begin}, s.shift, s.scale}, c);
      else
        eight(rho, Variable<Rows>{rows(s.x, c), s.shift, s.scale}, c);
  });
}

}  // namespace PF_ISA
}  // namespace polyfuse
