#include "plan.h"

#include <algorithm>
#include <tuple>

#include "core/optimizer.h"

namespace polyfuse {

Plan::Plan(int n_params, int n_coefficients, const py::list& term_list, double shift, double scale,
           const py::object& tables) {
  for (py::handle item : term_list) {
    const auto [factor, coefficient, params] =
        item.cast<std::tuple<double, int32_t, std::vector<int32_t>>>();
    const auto begin = static_cast<int32_t>(slots.size());
    slots.insert(slots.end(), params.begin(), params.end());
    factors.push_back(factor);
    spans.push_back({coefficient, begin, static_cast<int32_t>(slots.size())});
  }
  bool identity = n_params == n_coefficients && static_cast<int>(spans.size()) == n_params;
  bool apart = true;
  std::vector<bool> seen(static_cast<size_t>(n_coefficients));
  std::vector<bool> used(static_cast<size_t>(n_params));
  for (size_t t = 0; t < spans.size(); ++t) {
    const Span& s = spans[t];
    identity = identity && factors[t] == 1.0 && s.end == s.begin + 1 &&
               slots[s.begin] == s.coefficient && !seen[s.coefficient];
    apart = apart && !seen[s.coefficient];
    seen[s.coefficient] = true;
    for (int32_t f = s.begin; f < s.end; ++f) {
      apart = apart && !used[slots[f]];
      used[slots[f]] = true;
    }
  }
  problem.map = {n_params,       n_coefficients, static_cast<int>(spans.size()),
                 factors.data(), spans.data(),   slots.data(),
                 identity,       apart};
  if (!tables.is_none()) {
    const auto [of_terms, products, moment_of, shifts, scales] = tables.cast<
        std::tuple<std::vector<std::pair<int, int>>, std::vector<std::tuple<int, int, int>>,
                   std::vector<int32_t>, std::vector<double>, std::vector<double>>>();
    surface = std::make_unique<SurfaceTables>(of_terms, products, moment_of, shifts, scales);
    problem.surface = &surface->view;
  }
  problem.data.shift = shift;
  problem.data.scale = scale;
  rule.resize(static_cast<size_t>(n_params));
  problem.rule = rule.data();
}

void Plan::set_stacked(const Stacked& of) {
  stacked = of;
  problem.stacked = &*stacked;
  problem.map.n_params = of.n_terms * of.n_outputs;
}

UpdateRule rule_from(py::handle options) {
  UpdateRule rule;
  if (options.is_none()) return rule;
  const auto row = options.cast<std::vector<double>>();  // the method, and its options
  rule.method = static_cast<Method>(static_cast<int>(row.at(0)));
  if (row.size() > 1 + kOptions) throw py::value_error("too many options");
  std::copy(row.begin() + 1, row.end(), rule.option);
  return rule;
}

void Plan::set_rule(const py::list& options) {
  rule.clear();
  for (py::handle of_one : options) rule.push_back(rule_from(of_one));
  changes.clear();
  problem.rule = rule.data();
  problem.n_changes = 0;
}

void Plan::set_changes(const py::list& list) {
  for (py::handle item : list) {
    const auto [epoch, options] = item.cast<std::pair<int64_t, py::list>>();
    changes.push_back(epoch);
    for (py::handle of_one : options) rule.push_back(rule_from(of_one));
  }
  problem.rule = rule.data();
  problem.changes = changes.data();
  problem.n_changes = static_cast<int>(changes.size());
}

std::vector<double> kept_after(const py::object& options, std::vector<double> kept) {
  double nothing = 0.0;
  kept.resize(kKept);
  update(rule_from(options), nothing, 0.0, kept.data());
  return kept;
}

}  // namespace polyfuse
