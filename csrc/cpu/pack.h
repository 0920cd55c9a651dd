// Eight doubles in as many registers as the instruction set needs; lane i is always sample i.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "../core/macros.h"

namespace polyfuse {
inline namespace PF_ISA {

constexpr int kLanes = 8;
#if defined(__AVX512F__)
constexpr int kWidth = 8;
#elif defined(__AVX2__)
constexpr int kWidth = 4;
#else
constexpr int kWidth = 2;
#endif

#define PF_ALWAYS_INLINE __attribute__((always_inline))
#define PF_INLINE inline PF_ALWAYS_INLINE

// f(0), f(1), ..., f(N - 1) with constant arguments: arrays indexed by them live in registers.
template <class F, int... I>
PF_INLINE void unroll(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
PF_INLINE void unroll(F&& f) {
  unroll(f, std::make_integer_sequence<int, N>{});
}

struct Pack {
  static constexpr int kParts = kLanes / kWidth;
  typedef double Part __attribute__((vector_size(8 * kWidth)));
  typedef float PartF32 __attribute__((vector_size(4 * kWidth)));
  typedef double Half __attribute__((vector_size(32)));
  typedef double Quarter __attribute__((vector_size(16)));
  Part part[kParts];

  static PF_INLINE Pack all(double value) {
    Pack result;
    unroll<kParts>([&](auto i) { result.part[i] = Part{} + value; });
    return result;
  }
  static PF_INLINE Pack load(const double* from) {
    Pack result;
    std::memcpy(&result, from, sizeof result);
    return result;
  }
  static PF_INLINE Pack load(const float* from) {
    Pack result;
    unroll<kParts>([&](auto i) {
      PartF32 narrow;
      std::memcpy(&narrow, from + i * kWidth, sizeof narrow);
      result.part[i] = __builtin_convertvector(narrow, Part);
    });
    return result;
  }
  PF_INLINE void store(double* to) const { std::memcpy(to, this, sizeof *this); }
  PF_INLINE void store(float* to) const {
    unroll<kParts>([&](auto i) {
      const PartF32 narrow = __builtin_convertvector(part[i], PartF32);
      std::memcpy(to + i * kWidth, &narrow, sizeof narrow);
    });
  }

#define PF_PACK_OPERATOR(op)                                             \
  friend PF_INLINE Pack operator op(Pack a, const Pack& b) {             \
    unroll<kParts>([&](auto i) { a.part[i] = a.part[i] op b.part[i]; }); \
    return a;                                                            \
  }                                                                      \
  friend PF_INLINE Pack operator op(Pack a, double b) {                  \
    unroll<kParts>([&](auto i) { a.part[i] = a.part[i] op b; });         \
    return a;                                                            \
  }
  PF_PACK_OPERATOR(+)
  PF_PACK_OPERATOR(-)
  PF_PACK_OPERATOR(*)
#undef PF_PACK_OPERATOR
  PF_INLINE Pack& operator+=(const Pack& b) { return *this = *this + b; }
  PF_INLINE Pack& operator*=(const Pack& b) { return *this = *this * b; }

  double lane(int i) const { return part[i / kWidth][i % kWidth]; }

  // Sum of the lanes, in the same tree whatever the width.
  PF_INLINE double total() const {
#if defined(__AVX512F__)
    const Half half = __builtin_shufflevector(part[0], part[0], 0, 1, 2, 3) +
                      __builtin_shufflevector(part[0], part[0], 4, 5, 6, 7);
    const Quarter quarter =
        __builtin_shufflevector(half, half, 0, 1) + __builtin_shufflevector(half, half, 2, 3);
#elif defined(__AVX2__)
    const Half half = part[0] + part[1];
    const Quarter quarter =
        __builtin_shufflevector(half, half, 0, 1) + __builtin_shufflevector(half, half, 2, 3);
#else
    const Quarter quarter = (part[0] + part[2]) + (part[1] + part[3]);
#endif
    return quarter[0] + quarter[1];
  }
};

}  // namespace PF_ISA
}  // namespace polyfuse
