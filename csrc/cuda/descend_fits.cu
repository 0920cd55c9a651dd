// The epochs of every fit of a batch, in one launch: each fit has a loss of its own, and stops on
// its own. The samples are read once, or from where they are kept in every epoch.
#include "criterion.cuh"
#include "descent.cuh"
#include "launch.cuh"
#include "launch.h"

namespace polyfuse {
namespace {

// Any criterion, from the samples.
template <class T, int M>
struct FromPoints {
  const Fits& fits;
  const Points<T>& points;
  int terms;
  double weight;

  PF_DEVICE double operator()(const double* p, double* grad) const {
    double value = 0.0, sum[M] = {};
    points.each(Single{}, [&](T x, T y, double w) {
      const double u = (x - fits.shift) * fits.scale;
      double phi[M], prediction = p[0];
      phi[0] = 1.0;
      PF_UNROLL
      for (int j = 1; j < terms; ++j) {
        phi[j] = next_of(fits.basis, j - 1, u, phi[j - 1], j > 1 ? phi[j - 2] : 0.0);
        prediction += p[j] * phi[j];
      }
      const auto rho = Any::at(prediction, double(y), fits.criterion);
      value += w * rho.value;
      PF_UNROLL
      for (int j = 0; j < terms; ++j) sum[j] += w * rho.slope * phi[j];
    });
    PF_UNROLL
    for (int j = 0; j < terms; ++j) grad[j] = sum[j] * weight;
    return value * weight;
  }
};

// Epoch by epoch until the loss has settled.
template <class T, int M, class Objective>
PF_DEVICE void descend(const Fits& fits, int64_t fit, int terms, int rank,
                       const Objective& objective) {
  const Schedule& schedule = fits.schedule;
  const int64_t first = schedule.first_epoch;
  Descending<T, M> s(fits, fit, terms);
  Pace pace(fits);
  Recorder record{fits.recorded + fit, fits.fits};
  int64_t epoch = 0;
  for (;; ++epoch) {
    double grad[M];
    s.loss = objective(s.p, grad);
    if (epoch == schedule.epochs) break;
    if (records(schedule, first + epoch)) record(s.loss);
    const double change = fabs(s.previous - s.loss);
    if (change <= schedule.tol * fabs(s.loss) && finite(s.loss)) s.goes_on = false;
    if (!s.goes_on) break;
    s.previous = s.loss;
    PF_UNROLL
    for (int j = 0; j < terms; ++j) s.grad[j] = grad[j];
    pace.at(epoch);
    with_rule(fits.rule.method, [&](auto of) { s.update(of, pace, terms); });
    if (fits.step) break;
  }
  s.epochs = epoch;
  for (++epoch; epoch < schedule.epochs; ++epoch)
    if (records(schedule, first + epoch)) record(s.loss);
  s.leave(terms, rank);
}

template <class T, int M>
__global__ void __launch_bounds__(kFitThreads, 1)
    descend_moments(const __grid_constant__ Fits fits) {
  const int terms = M <= kUnrolledTerms ? M : fits.n_terms;
  for_each_fit<T>(fits, dynamic_shared(), [&](int64_t fit, const Points<T>& points) {
    Fitted<M> fitted;
    fitted.of(points, fits, terms, Single{});
    const Orthogonal<double, M>& q = fitted.q;
    const Quadratic<double, double, M <= kUnrolledTerms ? M : 0> objective{
        terms, fitted.factor, q.along, q.rest, loss_weight(fits, fitted.frame.weight)};
    descend<T, M>(fits, fit, terms, static_cast<int>(q.rank), objective);
  });
}

template <class T, int M>
__global__ void __launch_bounds__(kFitThreads, 1)
    descend_stream(const __grid_constant__ Fits fits) {
  const int terms = M <= kUnrolledTerms ? M : fits.n_terms;
  for_each_fit<T>(fits, dynamic_shared(), [&](int64_t fit, const Points<T>& points) {
    const Frame frame = fits.step ? Frame{} : Frame::of(points, Single{});
    const int rank = fits.step                       ? terms
                     : fits.schedule.first_epoch > 0 ? fits.rank[fit]
                                                     : rank_of<M>(points, frame, terms);
    const FromPoints<T, M> objective{fits, points, terms, loss_weight(fits, frame.weight)};
    descend<T, M>(fits, fit, terms, rank, objective);
  });
}

}  // namespace

void launch_descend_fits(const Fits& fits, void* on) {
  with_dtype(fits.dtype, [&](auto value) {
    with_terms(fits.n_terms, [&](auto m) {
      const bool streams = fits.engine == Engine::Stream;
      launch(streams ? descend_stream<decltype(value), m()> : descend_moments<decltype(value), m()>,
             fits, on);
    });
  });
}

}  // namespace polyfuse
