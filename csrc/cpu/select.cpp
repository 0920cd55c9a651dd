// Picks the instruction set at run time. POLYFUSE_ISA=baseline|avx2|avx512 narrows it, for tests.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "passes.h"

namespace polyfuse {
namespace {

const Passes& choose() {
  const char* variable = std::getenv("POLYFUSE_ISA");
  const std::string limit = variable ? variable : "";
  if (!limit.empty() && limit != "baseline" && limit != "avx2" && limit != "avx512")
    throw std::invalid_argument("POLYFUSE_ISA: expected baseline, avx2 or avx512, got " + limit);
#if defined(__x86_64__)
  if (limit == "baseline") return passes_baseline;
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512 && limit != "avx2") return passes_avx512;
  if (avx2) return passes_avx2;
#endif
  return passes_baseline;
}

}  // namespace

const Passes& passes() {
  static const Passes& chosen = choose();
  return chosen;
}

const Passes& passes_for(int64_t n) {
#if defined(__x86_64__)
  if (n <= 4096 && &passes() == &passes_avx512) return passes_avx2;
#endif
  return passes();
}

}  // namespace polyfuse
