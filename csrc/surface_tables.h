// A surface with the memory that its plain struct points to.
#pragma once

#include <tuple>
#include <utility>
#include <vector>

#include "cpu/surface.h"

namespace polyfuse {

struct SurfaceTables {
  std::vector<Term> terms;
  std::vector<Product> products;
  std::vector<int32_t> moment_of;
  std::vector<double> shift, scale;
  Surface view;

  SurfaceTables(const SurfaceTables&) = delete;
  SurfaceTables& operator=(const SurfaceTables&) = delete;
  SurfaceTables(const std::vector<std::pair<int, int>>& of_terms,
                const std::vector<std::tuple<int, int, int>>& of_products,
                std::vector<int32_t> moments, std::vector<double> shifts,
                std::vector<double> scales)
      : moment_of(std::move(moments)), shift(std::move(shifts)), scale(std::move(scales)) {
    for (const auto& [parent, variable] : of_terms) terms.push_back({parent, variable});
    for (const auto& [a, b, moment] : of_products) products.push_back({a, b, moment});
    view.n_variables = static_cast<int32_t>(shift.size());
    view.n_terms = static_cast<int32_t>(terms.size());
    view.n_products = static_cast<int32_t>(products.size());
    view.shift = shift.data();
    view.scale = scale.data();
    view.terms = terms.data();
    view.products = products.data();
    view.moment_of = moment_of.data();
  }
};

}  // namespace polyfuse
