// The epochs of every fit of a batch, in one launch: each fit has a loss of its own, and stops on
// its own. The samples are read once, or from where they are kept in every epoch.
#include "criterion.cuh"
#include "fits.cuh"
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

// The rates of one epoch after the other: those of the table, and what follows it.
class Pace {
 public:
  PF_DEVICE explicit Pace(const Fits& fits) : fits_(fits) {
    PF_UNROLL
    for (int r = 0; r < kKept; ++r) kept_[r] = fits.kept_once[r];
  }
  PF_DEVICE void at(int64_t epoch, double (&rate)[kRates]) {
    if (epoch < fits_.paced) {
      PF_UNROLL
      for (int r = 0; r < kRates; ++r) rate[r] = fits_.rates[epoch * kRates + r];
      return;
    }
    with_rule(fits_.rule.method, [&](auto of) { of.advance(fits_.rule.option, kept_, rate); });
  }

 private:
  const Fits& fits_;
  double kept_[kKept];
};

template <class T, int M>
struct Descending {
  double p[M], grad[M], kept[M][kKept];

  PF_DEVICE void load(const Fits& fits, int64_t fit, int terms) {
    PF_UNROLL
    for (int j = 0; j < terms; ++j) {
      const int64_t at = j * fits.fits + fit;
      p[j] = static_cast<const T*>(fits.params)[at];
      grad[j] = 0.0;
      PF_UNROLL
      for (int r = 0; r < kKept; ++r)
        kept[j][r] = fits.kept[r] ? double(static_cast<const T*>(fits.kept[r])[at]) : 0.0;
    }
  }

  PF_DEVICE void update(const Fits& fits, int64_t fit, int terms, const double* rate) {
    with_rule(fits.rule.method, [&](auto of) {
      PF_UNROLL
      for (int j = 0; j < terms; ++j) {
        of.update(fits.rule.option, rate, p[j], grad[j], kept[j]);
        const int64_t at = j * fits.fits + fit;
        if (fits.low) p[j] = projected(p[j], fits.low[at], fits.high[at]);
      }
    });
  }

  PF_DEVICE void store(const Fits& fits, int64_t fit, int terms) const {
    PF_UNROLL
    for (int j = 0; j < terms; ++j) {
      const int64_t at = j * fits.fits + fit;
      static_cast<T*>(fits.params)[at] = static_cast<T>(p[j]);
      if (fits.schedule.epochs > 0) static_cast<T*>(fits.grad)[at] = static_cast<T>(grad[j]);
      PF_UNROLL
      for (int r = 0; r < kKept; ++r)
        if (fits.kept[r]) static_cast<T*>(fits.kept[r])[at] = static_cast<T>(kept[j][r]);
    }
  }
};

// Epoch by epoch until the loss has settled; `counted`: whether any sample counts.
template <class T, int M, class Objective>
PF_DEVICE void descend(const Fits& fits, int64_t fit, int terms, bool counted,
                       const Objective& objective) {
  const Schedule& schedule = fits.schedule;
  Descending<T, M> s;
  s.load(fits, fit, terms);
  Pace pace(fits);
  double* record = fits.recorded + fit;
  const auto keep = [&](int64_t epoch, double loss) {
    if (!records(schedule, epoch)) return;
    *record = loss;
    record += fits.fits;
  };
  double loss = 0.0, start = 0.0, previous = NAN;
  int64_t epoch = 0;
  for (;; ++epoch) {
    double grad[M];
    loss = objective(s.p, grad);
    if (epoch == 0) start = loss;
    if (epoch == schedule.epochs) break;
    keep(epoch, loss);
    if (fabs(previous - loss) <= schedule.tol * fabs(loss) && finite(loss)) break;
    previous = loss;
    PF_UNROLL
    for (int j = 0; j < terms; ++j) s.grad[j] = grad[j];
    double rate[kRates];
    pace.at(epoch, rate);
    s.update(fits, fit, terms, rate);
  }
  for (int64_t after = epoch + 1; after < schedule.epochs; ++after) keep(after, loss);
  bool bounded = finite(loss);
  PF_UNROLL
  for (int j = 0; j < terms; ++j) bounded = bounded && finite(s.p[j]);
  s.store(fits, fit, terms);
  fits.loss[fit] = counted ? loss : NAN;
  fits.epochs[fit] = epoch;
  fits.rank[fit] = counted ? terms : 0;
  fits.status[fit] = !counted                  ? FitStatus::RankDeficient
                     : !finite(start)          ? FitStatus::NonFinite
                     : !bounded                ? FitStatus::Diverged
                     : epoch < schedule.epochs ? FitStatus::Converged
                                               : FitStatus::StepLimit;
}

PF_DEVICE double loss_weight(const Fits& fits, const Frame& frame) {
  const bool mean = fits.mean && frame.weight > 0.0;
  return fits.criterion.weight * (mean ? 1.0 / frame.weight : 1.0);
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
        terms, fitted.factor, q.along, q.rest, loss_weight(fits, fitted.frame)};
    descend<T, M>(fits, fit, terms, q.rank > 0.0, objective);
  });
}

template <class T, int M>
__global__ void __launch_bounds__(kFitThreads, 1)
    descend_stream(const __grid_constant__ Fits fits) {
  const int terms = M <= kUnrolledTerms ? M : fits.n_terms;
  for_each_fit<T>(fits, dynamic_shared(), [&](int64_t fit, const Points<T>& points) {
    const Frame frame = Frame::of(points, Single{});
    const FromPoints<T, M> objective{fits, points, terms, loss_weight(fits, frame)};
    descend<T, M>(fits, fit, terms, frame.count > 0.0, objective);
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
