// Launchers of the kernels, and what is known of the kernels at build time.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/run.h"
#include "geometry.h"

namespace polyfuse {

// All take device addresses in Run and launch on `stream`; they throw what CUDA refuses.
void launch_step(const Run&, void* stream);
void launch_stream(const Run&, void* stream);
void launch_classes(const Run&, void* stream);
void launch_moments(const Run&, void* stream);
void launch_evaluate(const Run&, void* stream);
void launch_project(const Run&, void* stream);
void launch_count_nonfinite(const Run&, void* stream);
void launch_update(const Run&, void* stream);
void launch_store(const Run&, void* stream);

std::string missing();  // empty, or why there is no device
Device device(int index);
std::vector<std::pair<std::string, int>> kernels();  // name, and the most threads of a block

// f(size of the bucket), as a compile-time constant.
template <class F>
void with_bucket(int n_terms, F&& f) {
  switch (bucket_of(n_terms)) {
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 5: return f(std::integral_constant<int, 5>{});
    case 8: return f(std::integral_constant<int, 8>{});
    case 16: return f(std::integral_constant<int, 16>{});
    default: return f(std::integral_constant<int, kMaxTerms>{});
  }
}

// f(a value of the type of the samples).
template <class F>
void with_dtype(Dtype dtype, F&& f) {
  if (dtype == Dtype::Float32) return f(float{});
  return f(double{});
}

}  // namespace polyfuse
