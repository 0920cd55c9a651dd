// The rule of every epoch of a batch, and its rates.
#pragma once

#include <algorithm>

#include "../core/optimizer.h"
#include "batch.h"

namespace polyfuse {
inline namespace PF_ISA {

// Of one epoch after the other: from the plan's table, which all fits share, and what follows it.
class Pace {
 public:
  explicit Pace(const BatchPlan& plan)
      : plan_(plan), rule_(&plan.batch.rule), next_(plan.batch.changes.data()) {
    std::copy_n(plan.kept, kKept, kept_);
  }
  // The rates, after which rule() is that of this epoch.
  const double* at(int64_t epoch) {
    const Change* const end = plan_.batch.changes.data() + plan_.batch.changes.size();
    for (; next_ != end && next_->epoch <= epoch; ++next_) rule_ = &next_->rule;
    if (epoch < plan_.paced) return plan_.rates + epoch * kRates;
    with_rule(rule_->method, [&](auto of) { of.advance(rule_->option, kept_, rate_); });
    return rate_;
  }
  const UpdateRule& rule() const { return *rule_; }
  const double* kept() const { return kept_; }

 private:
  const BatchPlan& plan_;
  const UpdateRule* rule_;
  const Change* next_;
  double kept_[kKept], rate_[kRates];
};

}  // namespace PF_ISA
}  // namespace polyfuse
