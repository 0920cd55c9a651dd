#include "plan.h"

#include <algorithm>
#include <tuple>

namespace polyfuse {

Plan::Plan(int n_params, int n_coefficients, const py::list& term_list, double shift,
           double scale) {
  for (py::handle item : term_list) {
    const auto [factor, coefficient, params] =
        item.cast<std::tuple<double, int32_t, std::vector<int32_t>>>();
    const auto begin = static_cast<int32_t>(slots.size());
    slots.insert(slots.end(), params.begin(), params.end());
    factors.push_back(factor);
    spans.push_back({coefficient, begin, static_cast<int32_t>(slots.size())});
  }
  bool identity = n_params == n_coefficients && static_cast<int>(spans.size()) == n_params;
  std::vector<bool> seen(static_cast<size_t>(n_coefficients));
  for (size_t t = 0; t < spans.size(); ++t) {
    const Span& s = spans[t];
    identity = identity && factors[t] == 1.0 && s.end == s.begin + 1 &&
               slots[s.begin] == s.coefficient && !seen[s.coefficient];
    seen[s.coefficient] = true;
  }
  problem.map = {n_params,       n_coefficients, static_cast<int>(spans.size()),
                 factors.data(), spans.data(),   slots.data(),
                 identity};
  problem.data.shift = shift;
  problem.data.scale = scale;
  rule.resize(static_cast<size_t>(n_params));
  problem.rule = rule.data();
}

void Plan::set_rule(const py::list& options) {
  for (size_t i = 0; i < rule.size(); ++i) {
    rule[i] = {};
    if (options[i].is_none()) continue;
    const auto row = options[i].cast<std::vector<double>>();  // the method, and its options
    rule[i].method = static_cast<Method>(static_cast<int>(row.at(0)));
    if (row.size() > 1 + kOptions) throw py::value_error("too many options");
    std::copy(row.begin() + 1, row.end(), rule[i].option);
  }
}

}  // namespace polyfuse
