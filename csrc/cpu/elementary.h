// exp, log and log1p of packs: the same operations for every instruction set, errors below 1 ulp.
// exp: Cody and Waite's reduction by log 2 and a Taylor polynomial; log: that of fdlibm, in float32
// a minimax polynomial, which takes no division.
#pragma once

#include <limits>

#include "pack.h"

namespace polyfuse {
inline namespace PF_ISA {

// Terms [From, From + Count) of a table's polynomial over at^From by Estrin's scheme, whose chain
// of operations is short: powers[j] is at^(2^j).
template <int From, int Count, class Part, class S, size_t N>
PF_INLINE Part estrin(const S (&table)[N], const Part* powers) {
  if constexpr (Count == 1) {
    return Part{} + table[From];
  } else if constexpr (Count == 2) {
    return powers[0] * table[From + 1] + table[From];
  } else {
    constexpr int level = Count > 8 ? 3 : Count > 4 ? 2 : 1, half = 1 << level;
    return estrin<From + half, Count - half>(table, powers) * powers[level] +
           estrin<From, half>(table, powers);
  }
}
// sum_k table[k] at^k
template <class Part, class S, size_t N>
PF_INLINE Part series(const S (&table)[N], Part at) {
  Part powers[4] = {at};
  for (int j = 1; j < 4; ++j) powers[j] = powers[j - 1] * powers[j - 1];
  return estrin<0, N>(table, powers);
}

// What the formulas need to know of a format. to_integer: adding it leaves an integer in the lowest
// bits. log2_high times an exponent is exact.
template <class S>
struct Format;
template <>
struct Format<double> {
  using Bits = uint64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double to_integer = 0x1.8p52, highest = 710.0, lowest = -746.0;
  static constexpr double log2_high = 6.93147180369123816490e-01;
  static constexpr double log2_low = 1.90821492927058770002e-10;
  static constexpr double taylor[] = {
      1.0 / 2,     1.0 / 6,      1.0 / 24,      1.0 / 120,      1.0 / 720,       1.0 / 5040,
      1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
  static constexpr double odd[] = {6.666666666666735130e-01, 3.999999999940941908e-01,
                                   2.857142874366239149e-01, 2.222219843214978396e-01,
                                   1.818357216161805012e-01, 1.531383769920937332e-01,
                                   1.479819860511658591e-01};
  static constexpr Bits half_root = 0x3fe6a09e00000000;  // of 2

  // log(1 + f) - f + f^2 / 2 for 1 + f between the root of 2 and its half
  template <class Part>
  static PF_INLINE Part beyond_square(Part f, Part half_square) {
    const Part s = f / (f + 2.0), z = s * s;
    return s * (half_square + z * series(odd, z));
  }
};
template <>
struct Format<float> {
  using Bits = uint32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float to_integer = 0x1.8p23f, highest = 89.0f, lowest = -104.0f;
  static constexpr float log2_high = 6.9313812256e-01f, log2_low = 9.0580006145e-06f;
  static constexpr float taylor[] = {1.0f / 2,   1.0f / 6,   1.0f / 24,
                                     1.0f / 120, 1.0f / 720, 1.0f / 5040};
  static constexpr float cubic[] = {0x1.555554p-2f,  -0x1.000226p-2f, 0x1.99a008p-3f,
                                    -0x1.547244p-3f, 0x1.22da1cp-3f,  -0x1.0d8542p-3f,
                                    0x1.055b6ap-3f,  -0x1.38b580p-4f};
  static constexpr Bits half_root = 0x3f3504f3;

  template <class Part>
  static PF_INLINE Part beyond_square(Part f, Part) {
    return f * (f * f) * series(cubic, f);
  }
};

// 2^(n / 2) twice, as 2^n may be beyond the range.
template <class Pack, class Part = typename Pack::Part>
PF_INLINE Part exp_of(Part x) {
  using S = typename Pack::Scalar;
  using Unsigned = typename Pack::Unsigned;
  using F = Format<S>;
  constexpr S per_log2 = S(1.44269504088896338700);
  const auto beyond = x > F::highest;
  x = F::highest < x ? Part{} + F::highest : x;  // nan stays
  x = F::lowest > x ? Part{} + F::lowest : x;
  const Part n = (x * per_log2 + F::to_integer) - F::to_integer;
  const Part half = n * S(0.5) + F::to_integer;
  const Part other = (n - (half - F::to_integer)) + F::to_integer;
  const Part r = (x - n * F::log2_high) - n * F::log2_low;
  const Part value = S(1) + (r + r * r * series(F::taylor, r));
  const Part scaled = value * Part((Unsigned(half) + F::bias) << F::mantissa) *
                      Part((Unsigned(other) + F::bias) << F::mantissa);
  // said once more: a caller's fused multiply-add may take the last product unrounded
  return beyond ? Part{} + std::numeric_limits<S>::infinity() : scaled;
}

// log((x + lost) / 2^shift) for x > 0 that is no subnormal number, lost being what x was rounded by
template <class Pack, class Part = typename Pack::Part>
PF_INLINE Part log_of(Part x, Part shift, Part lost) {
  using S = typename Pack::Scalar;
  using Unsigned = typename Pack::Unsigned;
  using F = Format<S>;
  using Bits = typename F::Bits;
  constexpr Bits one = Bits(F::bias) << F::mantissa;
  constexpr Bits to_integer = Bits(F::bias + F::mantissa) << F::mantissa;  // 2^mantissa
  constexpr Bits fraction = (Bits(1) << F::mantissa) - 1;
  constexpr Bits highest = Bits(2 * F::bias + 1) << F::mantissa;
  const Unsigned bits = Unsigned(x) + (one - F::half_root);
  const Part k = Part((bits >> F::mantissa) | to_integer) -
                 (shift + S((Bits(1) << F::mantissa) + Bits(F::bias)));
  const Part per_power = Part(highest - (bits & ~fraction));  // 2^(1 - k)
  const Part f = (Part((bits & fraction) + F::half_root) - S(1)) + S(0.5) * lost * per_power;
  const Part half_square = S(0.5) * f * f;
  const Part correction = F::beyond_square(f, half_square) + k * F::log2_low;
  return k * F::log2_high - ((half_square - correction) - f);
}

// The logarithm of x, of which value is right if x is positive and finite.
template <class S, class Part>
PF_INLINE Part log_anywhere(Part x, Part value) {
  using Limits = std::numeric_limits<S>;
  const Part at_zero = x == S(0) ? Part{} - Limits::infinity() : Part{} + Limits::quiet_NaN();
  value = x < Limits::infinity() ? value : x;
  return x > S(0) ? value : at_zero;
}

template <class Pack, class F>
PF_INLINE Pack each_part(F&& f) {
  Pack result;
  unroll<Pack::kParts>([&](auto i) PF_ALWAYS_INLINE { result.part[i] = f(i); });
  return result;
}

template <int Lanes, class S>
PF_INLINE PackOf<Lanes, S> like(const PackOf<Lanes, S>&, double value) {
  return PackOf<Lanes, S>::all(value);
}
template <int Lanes, class S>
PF_INLINE PackOf<Lanes, S> if_less(PackOf<Lanes, S> a, double b, PackOf<Lanes, S> then,
                                   PackOf<Lanes, S> otherwise) {
  return each_part<PackOf<Lanes, S>>(
      [&](auto i) PF_ALWAYS_INLINE { return a.part[i] < S(b) ? then.part[i] : otherwise.part[i]; });
}
template <int Lanes, class S>
PF_INLINE PackOf<Lanes, S> if_zero(PackOf<Lanes, S> a, PackOf<Lanes, S> then,
                                   PackOf<Lanes, S> otherwise) {
  return each_part<PackOf<Lanes, S>>([&](auto i) PF_ALWAYS_INLINE {
    return a.part[i] == S(0) ? then.part[i] : otherwise.part[i];
  });
}

template <int Lanes, class S>
PF_INLINE PackOf<Lanes, S> abs(PackOf<Lanes, S> x) {
  using Pack = PackOf<Lanes, S>;
  using Bits = typename Format<S>::Bits;
  return each_part<Pack>([&](auto i) PF_ALWAYS_INLINE {
    return typename Pack::Part(typename Pack::Unsigned(x.part[i]) & (~Bits(0) >> 1));
  });
}

template <int Lanes>
PF_INLINE PackOf<Lanes> sqrt(PackOf<Lanes> x) {
  return each_part<PackOf<Lanes>>([&](auto i) PF_ALWAYS_INLINE {
    auto part = x.part[i];
#if defined(__AVX512F__)
    if constexpr (PackOf<Lanes>::kPartLanes == 8) return decltype(part)(_mm512_sqrt_pd(part));
#endif
#if defined(__AVX2__)
    if constexpr (PackOf<Lanes>::kPartLanes == 4) return decltype(part)(_mm256_sqrt_pd(part));
#endif
    for (int lane = 0; lane < PackOf<Lanes>::kPartLanes; ++lane)
      part[lane] = __builtin_sqrt(part[lane]);
    return part;
  });
}

template <int Lanes, class S>
PF_INLINE PackOf<Lanes, S> exp(PackOf<Lanes, S> x) {
  using Pack = PackOf<Lanes, S>;
  return each_part<Pack>([&](auto i) PF_ALWAYS_INLINE { return exp_of<Pack>(x.part[i]); });
}

template <int Lanes, class S>
PF_INLINE PackOf<Lanes, S> log(PackOf<Lanes, S> x) {
  using Pack = PackOf<Lanes, S>;
  using Part = typename Pack::Part;
  constexpr int exponent = Format<S>::mantissa + 2;
  constexpr S power = S(typename Format<S>::Bits(1) << exponent);
  constexpr S least = std::numeric_limits<S>::min();
  return each_part<Pack>([&](auto i) PF_ALWAYS_INLINE {
    const Part at = x.part[i];
    const Part shift = at < least ? Part{} + S(exponent) : Part{};
    const Part normal = at < least ? at * power : at;
    return log_anywhere<S>(at, log_of<Pack>(normal, shift, Part{}));
  });
}

template <int Lanes, class S>
PF_INLINE PackOf<Lanes, S> log1p(PackOf<Lanes, S> x) {
  using Pack = PackOf<Lanes, S>;
  using Part = typename Pack::Part;
  return each_part<Pack>([&](auto i) PF_ALWAYS_INLINE {
    const Part at = x.part[i], u = S(1) + at;
    const Part lost = u > S(2) ? S(1) - (u - at) : at - (u - S(1));
    return log_anywhere<S>(u, log_of<Pack>(u, Part{}, lost));
  });
}

}  // namespace PF_ISA
}  // namespace polyfuse
