// Doubles, or floats, in as many registers as the instruction set needs; lane i is always sample i.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/terms.h"

namespace polyfuse {
inline namespace PF_ISA {

constexpr int kLanes = 8;         // of the Pack that loops over many samples take
constexpr int kSingleLanes = 16;  // of its like in float32
// Bytes of one register.
#if defined(__AVX512F__)
constexpr int kRegister = 64;
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

#define PF_INLINE inline PF_ALWAYS_INLINE

// Vectors of N numbers S, and of unsigned integers as wide.
template <class S, int N>
struct Vector;
#define PF_VECTOR(S, U, N)                                          \
  template <>                                                       \
  struct Vector<S, N> {                                             \
    typedef S Real __attribute__((vector_size(sizeof(S) * N)));     \
    typedef U Unsigned __attribute__((vector_size(sizeof(U) * N))); \
  };
PF_VECTOR(double, uint64_t, 2)
PF_VECTOR(double, uint64_t, 4)
PF_VECTOR(double, uint64_t, 8)
PF_VECTOR(float, uint32_t, 2)
PF_VECTOR(float, uint32_t, 4)
PF_VECTOR(float, uint32_t, 8)
PF_VECTOR(float, uint32_t, 16)
PF_VECTOR(int32_t, uint32_t, 2)
PF_VECTOR(int32_t, uint32_t, 4)
PF_VECTOR(int32_t, uint32_t, 8)
#undef PF_VECTOR

template <int Lanes, class S = double>
struct PackOf {
  static constexpr int kWidth = kRegister / sizeof(S);
  static constexpr int kPartLanes = Lanes < kWidth ? Lanes : kWidth;
  static constexpr int kParts = Lanes / kPartLanes;
  using Scalar = S;
  using Part = typename Vector<S, kPartLanes>::Real;
  using Unsigned = typename Vector<S, kPartLanes>::Unsigned;
  using Half = typename Vector<double, 4>::Real;
  using Quarter = typename Vector<double, 2>::Real;
  Part part[kParts];

  PackOf() = default;
  // Register by register: gcc 12 copies a whole pack in quarters, over the stack.
  PF_INLINE PackOf(const PackOf& from) { *this = from; }
  PF_INLINE PackOf& operator=(const PackOf& from) {
    unroll<kParts>([&](auto i) { part[i] = from.part[i]; });
    return *this;
  }

  static PF_INLINE Part widened(const float* from) {
    typename Vector<float, kPartLanes>::Real narrow;
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
    const auto narrow = __builtin_convertvector(wide, typename Vector<float, kPartLanes>::Real);
    std::memcpy(to, &narrow, sizeof narrow);
  }

  // Towards zero.
  static PF_INLINE void narrowed(Part wide, int32_t* to) {
    const auto narrow = __builtin_convertvector(wide, typename Vector<int32_t, kPartLanes>::Real);
    std::memcpy(to, &narrow, sizeof narrow);
  }

  static PF_INLINE PackOf all(double value) {
    PackOf result;
    unroll<kParts>([&](auto i) { result.part[i] = Part{} + S(value); });
    return result;
  }
  static PF_INLINE PackOf load(const S* from) {
    PackOf result;
    unroll<kParts>([&](auto i) {
      std::memcpy(&result.part[i], from + i * kPartLanes, sizeof result.part[i]);
    });
    return result;
  }
  template <class Narrow, class = std::enable_if_t<sizeof(Narrow) < sizeof(S)>>
  static PF_INLINE PackOf load(const Narrow* from) {
    PackOf result;
    unroll<kParts>([&](auto i) { result.part[i] = widened(from + i * kPartLanes); });
    return result;
  }
  PF_INLINE void store(S* to) const { std::memcpy(to, this, sizeof *this); }
  template <class Narrow, class = std::enable_if_t<sizeof(Narrow) < sizeof(S)>>
  PF_INLINE void store(Narrow* to) const {
    unroll<kParts>([&](auto i) { narrowed(part[i], to + i * kPartLanes); });
  }

#define PF_PACK_OPERATOR(op)                                             \
  friend PF_INLINE PackOf operator op(PackOf a, const PackOf& b) {       \
    unroll<kParts>([&](auto i) { a.part[i] = a.part[i] op b.part[i]; }); \
    return a;                                                            \
  }                                                                      \
  friend PF_INLINE PackOf operator op(PackOf a, double b) {              \
    unroll<kParts>([&](auto i) { a.part[i] = a.part[i] op S(b); });      \
    return a;                                                            \
  }                                                                      \
  friend PF_INLINE PackOf operator op(double a, PackOf b) {              \
    unroll<kParts>([&](auto i) { b.part[i] = S(a) op b.part[i]; });      \
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
  PF_INLINE PackOf& operator-=(const PackOf& b) { return *this = *this - b; }
  PF_INLINE PackOf& operator*=(const PackOf& b) { return *this = *this * b; }

  // Whether every lane is neither nan nor infinite.
  PF_INLINE bool all_finite() const {
    Part nothing{};  // 0, or nan
    unroll<kParts>([&](auto i) { nothing += part[i] - part[i]; });
#if defined(__AVX512F__)
    if constexpr (sizeof(Part) == 64 && sizeof(S) == 8)
      return _mm512_cmp_pd_mask(__m512d(nothing), __m512d(nothing), _CMP_EQ_OQ) == 0xff;
#endif
    bool all = true;
    for (int i = 0; i < kPartLanes; ++i) all &= nothing[i] == S(0);
    return all;
  }

  S lane(int i) const { return part[i / kPartLanes][i % kPartLanes]; }

  // Lanes i and i + 8 of floats, as a sum of doubles.
  PF_INLINE PackOf<Lanes / 2, double> folded() const {
    using Wide = PackOf<Lanes / 2, double>;
    S lanes[Lanes];
    store(lanes);
    return Wide::load(lanes) + Wide::load(lanes + Lanes / 2);
  }

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
using Single = PackOf<kSingleLanes, float>;

}  // namespace PF_ISA
}  // namespace polyfuse
