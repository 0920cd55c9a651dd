#include "blocks.h"
#include "classes.h"
#include "stepping.h"

namespace polyfuse {

Report descend(const Classes& s, const UpdateRule* rule, const Schedule& schedule, int threads,
               State state) {
  const int n_params = s.n_terms * s.n_classes;
  std::vector<double> sums(static_cast<size_t>(2 + n_params));
  const auto objective = [&](Alone, const double* params, double* grad) {
    reduce(s.n, 2 + n_params, threads, sums.data(), [&](int64_t begin, int64_t end, double* out) {
      passes().class_loss(s, params, begin, end, out);
    });
    const double weight = s.mean ? 1.0 / sums[1] : 1.0;
    for (int j = 0; j < n_params; ++j) grad[j] = sums[1] > 0.0 ? weight * sums[2 + j] : 0.0;
    return weight * sums[0];
  };
  return with_clock(n_params, rule, schedule,
                    [&](auto& descent, auto& out, auto& record, auto& pause) {
                      step_by_step(Alone{}, objective, descent, out, state, record, pause);
                    });
}

}  // namespace polyfuse
