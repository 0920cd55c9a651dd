#include "../core/cross_entropy.h"
#include "blocks.h"
#include "classes.h"
#include "stepping.h"

namespace polyfuse {

double objective(const Classes& s, int threads, const double* params, double* grad) {
  const int n_params = s.n_terms * s.n_classes;
  std::vector<double> sums(static_cast<size_t>(3 + n_params));
  reduce(s.n, 3 + n_params, threads, sums.data(), [&](int64_t begin, int64_t end, double* out) {
    passes_for(s.n).class_loss(s, params, begin, end, out);
  });
  const double weight = factor_of(s.mean, sums[1]);
  // Samples that are left out have no gradient.
  for (int j = 0; j < n_params; ++j) grad[j] = sums[2] > 0.0 ? weight * sums[3 + j] : 0.0;
  return weight * sums[0];
}

const int64_t* class_out_of_range(const Classes& s) {
  for (int64_t i = 0; s.index && i < s.n; ++i) {
    const int64_t* at = s.index + i * s.index_stride;
    if ((*at < 0 || *at >= s.n_classes) && *at != s.criterion.ignore) return at;
  }
  return nullptr;
}

Report descend(const Classes& s, const UpdateRule* rule, const Schedule& schedule, int threads,
               State state) {
  const int n_params = s.n_terms * s.n_classes;
  const auto look = [&](Alone, const double* params, double* grad) {
    return objective(s, threads, params, grad);
  };
  return with_clock(n_params, rule, schedule,
                    [&](auto& descent, auto& out, auto& record, auto& pause) {
                      step_by_step(Alone{}, look, descent, out, state, record, pause);
                    });
}

}  // namespace polyfuse
