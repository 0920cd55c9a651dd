// Picks the instruction set at run time. POLYFUSE_ISA=baseline|avx2 narrows it, for tests.
#include <cstdlib>
#include <cstring>

#include "passes.h"

namespace polyfuse {
namespace {

const Passes& choose() {
#if defined(__x86_64__)
  const char* limit = std::getenv("POLYFUSE_ISA");
  const bool narrow = limit && *limit;
  if (narrow && std::strcmp(limit, "baseline") == 0) return passes_baseline;
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512 && !narrow) return passes_avx512;
  if (avx2) return passes_avx2;
#endif
  return passes_baseline;
}

}  // namespace

const Passes& passes() {
  static const Passes& chosen = choose();
  return chosen;
}

}  // namespace polyfuse
