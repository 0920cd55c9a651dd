// The epochs of SGD of fits that share their design, in one read of the data and one launch: by
// powers of an affine map, which the host has computed with the design.
#include "../core/leap.h"
#include "descent.cuh"
#include "launch.cuh"
#include "launch.h"

namespace polyfuse {
namespace {

template <class T, int M>
__global__ void __launch_bounds__(kFitThreads, fit_blocks(M) - 1)
    leap_fits(const __grid_constant__ Fits fits) {
  constexpr int kTerms = M <= kUnrolledTerms ? M : 0;
  const int terms = kTerms ? kTerms : fits.n_terms;
  const Shared& design = fits.design;
  for_each_fit<T>(fits, dynamic_shared(), [&](int64_t fit, const Points<T>& points) {
    double along[M], rest;
    project(points, design.q, terms, along, rest);
    const Quadratic<double, double, kTerms> objective{terms, design.factor, along, rest,
                                                      loss_weight(fits, design.weight)};
    Descending<T, M> s(fits, fit, terms);
    Pace pace(fits);
    leap(
        fits.leaps, fits.schedule, terms, objective, s,
        [&](int64_t epoch) {
          pace.at(epoch);
          if (fits.rule.method == Method::Sgd) s.update(Sgd{}, pace, terms);
        },
        Recorder{fits.recorded + fit, fits.fits});
    s.epochs = fits.schedule.epochs;
    s.leave(terms, design.rank);
  });
}

}  // namespace

void launch_leap_fits(const Fits& fits, void* on) {
  with_dtype(fits.dtype, [&](auto value) {
    with_terms(fits.n_terms, [&](auto m) { launch(leap_fits<decltype(value), m()>, fits, on); });
  });
}

}  // namespace polyfuse
