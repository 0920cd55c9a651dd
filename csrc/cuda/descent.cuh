// Epochs of one fit: where they start, the rule of each of them, and what they leave behind.
#pragma once

#include "../core/optimizer.h"
#include "fits.cuh"

namespace polyfuse {

// The rule of one epoch after the other: its options and rates.
class Pace {
 public:
  double option[kOptions], rate[kRates];

  PF_DEVICE explicit Pace(const Fits& fits) : fits_(fits) { take(fits.rule.option); }

  PF_DEVICE void at(int64_t epoch) {
    for (; fits_.changes && fits_.changes[next_] <= epoch; ++next_)
      take(fits_.rules + (1 + next_) * kRuleRow + 1);
    const double* const row = fits_.rates + least(epoch, fits_.paced - 1) * kRates;
    PF_UNROLL
    for (int r = 0; r < kRates; ++r) rate[r] = row[r];
  }

 private:
  PF_DEVICE void take(const double* options) {
    PF_UNROLL
    for (int o = 0; o < kOptions; ++o) option[o] = options[o];
  }

  const Fits& fits_;
  int64_t next_ = 0;
};

// Parameters, gradients and what the rule keeps lie in the dtype of the samples, or in float64.
template <class T, int M>
struct Descending {
  double p[M], grad[M], kept[M][kKept], loss = 0.0, previous = NAN;
  int64_t epochs = 0;  // of this launch
  bool goes_on = true;

  PF_DEVICE Descending(const Fits& fits, int64_t fit, int terms) : fits_(fits), fit_(fit) {
    const bool first = fits.schedule.first_epoch == 0;
    if (!first && fits.previous) previous = fits.previous[fit];
    goes_on = first || fits.epochs[fit] == fits.schedule.first_epoch;
    PF_UNROLL
    for (int j = 0; j < terms; ++j) {
      const int64_t at = j * fits.fits + fit;
      p[j] = read(fits.start, at);
      if (fits.before) fits.before[at] = p[j];
      grad[j] = first ? 0.0 : read(fits.grad, at);
      PF_UNROLL
      for (int r = 0; r < kKept; ++r)
        kept[j][r] = fits.kept_from[r] ? read(fits.kept_from[r], at) : 0.0;
    }
  }

  template <class Rule>
  PF_DEVICE void update(Rule, const Pace& pace, int terms) {
    PF_UNROLL
    for (int j = 0; j < terms; ++j) {
      Rule::update(pace.option, pace.rate, p[j], grad[j], kept[j]);
      const int64_t at = j * fits_.fits + fit_;
      if (fits_.low) p[j] = projected(p[j], fits_.low[at], fits_.high[at]);
    }
  }

  // Whether the data or the fit is what is not finite, the host looks up.
  PF_DEVICE void leave(int terms, int rank) const {
    bool bounded = finite(loss);
    PF_UNROLL
    for (int j = 0; j < terms; ++j) {
      bounded = bounded && finite(p[j]);
      const int64_t at = j * fits_.fits + fit_;
      if (fits_.params) write(fits_.params, at, p[j]);
      if (fits_.schedule.epochs > 0) write(fits_.grad, at, grad[j]);
      PF_UNROLL
      for (int r = 0; r < kKept; ++r)
        if (fits_.kept[r]) write(fits_.kept[r], at, kept[j][r]);
    }
    fits_.loss[fit_] = rank > 0 ? loss : NAN;
    if (fits_.step) return;
    if (fits_.previous) fits_.previous[fit_] = previous;
    if (fits_.schedule.first_epoch == 0)
      fits_.epochs[fit_] = epochs;
    else
      fits_.epochs[fit_] += epochs;
    fits_.rank[fit_] = rank;
    fits_.status[fit_] = rank == 0  ? FitStatus::RankDeficient
                         : !bounded ? FitStatus::Diverged
                         : goes_on  ? FitStatus::StepLimit
                                    : FitStatus::Converged;
  }

 private:
  PF_DEVICE double read(const void* rows, int64_t at) const {
    return fits_.wide ? static_cast<const double*>(rows)[at] : static_cast<const T*>(rows)[at];
  }
  PF_DEVICE void write(void* rows, int64_t at, double value) const {
    if (fits_.wide)
      static_cast<double*>(rows)[at] = value;
    else
      static_cast<T*>(rows)[at] = static_cast<T>(value);
  }

  const Fits& fits_;
  const int64_t fit_;
};

// Losses of a fit, epoch by epoch.
struct Recorder {
  double* next;
  int64_t stride;
  PF_DEVICE void operator()(double loss) {
    *next = loss;
    next += stride;
  }
};

PF_DEVICE double loss_weight(const Fits& fits, double total) {
  return fits.criterion.weight * (fits.mean && total > 0.0 ? 1.0 / total : 1.0);
}

}  // namespace polyfuse
