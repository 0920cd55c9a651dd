// Many small fits in one launch: what they are told, and what becomes of each.
#pragma once

#include "problem.h"

namespace polyfuse {

// Numbers [N, B], strides in elements; a stride of 0 between fits where all share them.
struct Series {
  const void* at = nullptr;
  int64_t sample = 1, fit = 0;
  Dtype dtype = Dtype::Float64;
};

// By which the degree of every fit is chosen, and where not by n_terms.
enum class DegreeBy : int32_t { Terms, Aicc, Bic };

enum class FitStatus : int32_t { Converged, StepLimit, RankDeficient, NonFinite, Diverged };

}  // namespace polyfuse
