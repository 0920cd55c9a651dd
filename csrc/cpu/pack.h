// Doubles in as many registers as the instruction set needs; lane i is always sample i.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../core/macros.h"

namespace polyfuse {
inline namespace PF_ISA {

constexpr int kLanes = 8;  // of the Pack that loops over many samples take
// Of one register.
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

template <int N>
struct Vector;
template <>
struct Vector<2> {
  typedef double F64 __attribute__((vector_size(16)));
  typedef uint64_t U64 __attribute__((vector_size(16)));
  typedef float F32 __attribute__((vector_size(8)));
};
template <>
struct Vector<4> {
  typedef double F64 __attribute__((vector_size(32)));
  typedef uint64_t U64 __attribute__((vector_size(32)));
  typedef float F32 __attribute__((vector_size(16)));
};
template <>
struct Vector<8> {
  typedef double F64 __attribute__((vector_size(64)));
  typedef uint64_t U64 __attribute__((vector_size(64)));
  typedef float F32 __attribute__((vector_size(32)));
};

template <int Lanes>
struct PackOf {
  static constexpr int kPartLanes = Lanes < kWidth ? Lanes : kWidth;
  static constexpr int kParts = Lanes / kPartLanes;
  using Part = typename Vector<kPartLanes>::F64;
  using PartU64 = typename Vector<kPartLanes>::U64;
  using PartF32 = typename Vector<kPartLanes>::F32;
  using Half = Vector<4>::F64;
  using Quarter = Vector<2>::F64;
  Part part[kParts];

  static PF_INLINE Part widened(const float* from) {
    PartF32 narrow;
    std::memcpy(&narrow, from, sizeof narrow);
    // gcc 12 converts halves and puts them together
#if defined(__AVX512F__)
    if constexpr (kPartLanes == 8) return Part(_mm512_cvtps_pd(__m256(narrow)));
#endif
#if defined(__AVX2__)
    if constexpr (kPartLanes == 4) return Part(_mm256_cvtps_pd(__m128(narrow)));
#endif
    return __builtin_convertvector(narrow, Part);
  }
  static PF_INLINE void narrowed(Part wide, float* to) {
#if defined(__AVX512F__)
    if constexpr (kPartLanes == 8) {
      _mm256_storeu_ps(to, _mm512_cvtpd_ps(__m512d(wide)));
      return;
    }
#endif
#if defined(__AVX2__)
    if constexpr (kPartLanes == 4) {
      _mm_storeu_ps(to, _mm256_cvtpd_ps(__m256d(wide)));
      return;
    }
#endif
    const PartF32 narrow = __builtin_convertvector(wide, PartF32);
    std::memcpy(to, &narrow, sizeof narrow);
  }

  static PF_INLINE PackOf all(double value) {
    PackOf result;
    unroll<kParts>([&](auto i) { result.part[i] = Part{} + value; });
    return result;
  }
  static PF_INLINE PackOf load(const double* from) {
    PackOf result;  // register by register: gcc 12 copies a whole pack in quarters, over the stack
    unroll<kParts>([&](auto i) {
      std::memcpy(&result.part[i], from + i * kPartLanes, sizeof result.part[i]);
    });
    return result;
  }
  static PF_INLINE PackOf load(const float* from) {
    PackOf result;
    unroll<kParts>([&](auto i) { result.part[i] = widened(from + i * kPartLanes); });
    return result;
  }
  PF_INLINE void store(double* to) const { std::memcpy(to, this, sizeof *this); }
  PF_INLINE void store(float* to) const {
    unroll<kParts>([&](auto i) { narrowed(part[i], to + i * kPartLanes); });
  }

#define PF_PACK_OPERATOR(op)                                             \
  friend PF_INLINE PackOf operator op(PackOf a, const PackOf& b) {       \
    unroll<kParts>([&](auto i) { a.part[i] = a.part[i] op b.part[i]; }); \
    return a;                                                            \
  }                                                                      \
  friend PF_INLINE PackOf operator op(PackOf a, double b) {              \
    unroll<kParts>([&](auto i) { a.part[i] = a.part[i] op b; });         \
    return a;                                                            \
  }                                                                      \
  friend PF_INLINE PackOf operator op(double a, PackOf b) {              \
    unroll<kParts>([&](auto i) { b.part[i] = a op b.part[i]; });         \
    return b;                                                            \
  }
  PF_PACK_OPERATOR(+)
  PF_PACK_OPERATOR(-)
  PF_PACK_OPERATOR(*)
  PF_PACK_OPERATOR(/)
#undef PF_PACK_OPERATOR
  PF_INLINE PackOf operator-() const {
    PackOf result;
    unroll<kParts>([&](auto i) { result.part[i] = -part[i]; });
    return result;
  }
  PF_INLINE PackOf& operator+=(const PackOf& b) { return *this = *this + b; }
  PF_INLINE PackOf& operator*=(const PackOf& b) { return *this = *this * b; }

  double lane(int i) const { return part[i / kPartLanes][i % kPartLanes]; }

  // Sum of the lanes, in the same tree whatever the width.
  PF_INLINE double total() const {
    if constexpr (Lanes == 2) {
      return part[0][0] + part[0][1];
    } else {
      static_assert(Lanes == 8);
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
  }

  // The total in every lane.
  PF_INLINE PackOf total_everywhere() const {
    if constexpr (Lanes == 2) {
      PackOf result;
      result.part[0] = part[0] + __builtin_shufflevector(part[0], part[0], 1, 0);
      return result;
    } else if constexpr (Lanes == 4 && kParts == 1) {
      PackOf result;
      const Half half = part[0] + __builtin_shufflevector(part[0], part[0], 2, 3, 0, 1);
      result.part[0] = half + __builtin_shufflevector(half, half, 1, 0, 3, 2);
      return result;
    } else if constexpr (Lanes == 4) {
      PackOf result;
      const Quarter quarter = part[0] + part[1];
      result.part[0] = result.part[1] = quarter + __builtin_shufflevector(quarter, quarter, 1, 0);
      return result;
    } else {
      return all(total());
    }
  }
};
using Pack = PackOf<kLanes>;
using Quad = PackOf<4>;
using Pair = PackOf<2>;

}  // namespace PF_ISA
}  // namespace polyfuse
