// exp, log and log1p of packs: the same operations for every instruction set, errors below 1 ulp.
// exp: Cody and Waite's reduction by log 2 and a Taylor polynomial; log: that of fdlibm.
#pragma once

#include <limits>

#include "pack.h"

namespace polyfuse {
inline namespace PF_ISA {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kLog2High = 6.93147180369123816490e-01;  // times 11 bits of integer: exact
constexpr double kLog2Low = 1.90821492927058770002e-10;

// 2^(n / 2) twice, as 2^n may be beyond the range of doubles.
template <class F64, class U64>
PF_INLINE F64 exp_of(F64 x) {
  constexpr double per_log2 = 1.44269504088896338700;
  constexpr double to_integer = 0x1.8p52;  // adding it leaves an integer in the lowest bits
  constexpr double taylor[] = {1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,
                               1.0 / 720,     1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                               1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
  x = x > 710.0 ? F64{} + 710.0 : x;  // nan stays
  x = x < -746.0 ? F64{} - 746.0 : x;
  const F64 n = (x * per_log2 + to_integer) - to_integer;
  const F64 half = n * 0.5 + to_integer;
  const F64 other = (n - (half - to_integer)) + to_integer;
  const F64 r = (x - n * kLog2High) - n * kLog2Low;
  F64 sum = F64{} + taylor[11];
  for (int k = 10; k >= 0; --k) sum = sum * r + taylor[k];
  const F64 value = 1.0 + (r + r * r * sum);
  return value * F64((U64(half) + 1023) << 52) * F64((U64(other) + 1023) << 52);
}

// log(x) + rest for x > 0 that is no subnormal number, rest being small
template <class F64, class U64>
PF_INLINE F64 log_of(F64 x, F64 rest) {
  constexpr double odd[] = {6.666666666666735130e-01, 3.999999999940941908e-01,
                            2.857142874366239149e-01, 2.222219843214978396e-01,
                            1.818357216161805012e-01, 1.531383769920937332e-01,
                            1.479819860511658591e-01};
  constexpr uint64_t half_root = 0x3fe6a09e00000000;  // of 2
  constexpr uint64_t one = 0x3ff0000000000000, two_52 = 0x4330000000000000;
  const U64 bits = U64(x) + (one - half_root);
  const F64 k = F64((bits >> 52) | two_52) - (0x1p52 + 1023.0);
  const F64 f = F64((bits & 0x000fffffffffffff) + half_root) - 1.0;
  const F64 s = f / (f + 2.0), z = s * s, half_square = 0.5 * f * f;
  F64 sum = F64{} + odd[6];
  for (int i = 5; i >= 0; --i) sum = sum * z + odd[i];
  const F64 correction = s * (half_square + z * sum) + (k * kLog2Low + rest);
  return k * kLog2High - ((half_square - correction) - f);
}

template <int Lanes, class F>
PF_INLINE PackOf<Lanes> each_part(F&& f) {
  PackOf<Lanes> result;
  unroll<PackOf<Lanes>::kParts>([&](auto i) PF_ALWAYS_INLINE { result.part[i] = f(i); });
  return result;
}

template <int Lanes>
PF_INLINE PackOf<Lanes> like(const PackOf<Lanes>&, double value) {
  return PackOf<Lanes>::all(value);
}
template <int Lanes>
PF_INLINE PackOf<Lanes> if_less(PackOf<Lanes> a, double b, PackOf<Lanes> then,
                                PackOf<Lanes> otherwise) {
  return each_part<Lanes>(
      [&](auto i) PF_ALWAYS_INLINE { return a.part[i] < b ? then.part[i] : otherwise.part[i]; });
}

template <int Lanes>
PF_INLINE PackOf<Lanes> abs(PackOf<Lanes> x) {
  using Pack = PackOf<Lanes>;
  return each_part<Lanes>([&](auto i) PF_ALWAYS_INLINE {
    return typename Pack::Part(typename Pack::PartU64(x.part[i]) & 0x7fffffffffffffff);
  });
}

template <int Lanes>
PF_INLINE PackOf<Lanes> exp(PackOf<Lanes> x) {
  using Pack = PackOf<Lanes>;
  return each_part<Lanes>([&](auto i) PF_ALWAYS_INLINE {
    return exp_of<typename Pack::Part, typename Pack::PartU64>(x.part[i]);
  });
}

template <int Lanes>
PF_INLINE PackOf<Lanes> log(PackOf<Lanes> x) {
  using Pack = PackOf<Lanes>;
  using Part = typename Pack::Part;
  return each_part<Lanes>([&](auto i) PF_ALWAYS_INLINE {
    constexpr double least = std::numeric_limits<double>::min();
    const Part at = x.part[i];
    const Part shift = at < least ? Part{} + 54.0 : Part{};
    const Part normal = at < least ? at * 0x1p54 : at;
    const Part value =
        log_of<Part, typename Pack::PartU64>(normal, -shift * kLog2Low) - shift * kLog2High;
    const Part at_zero = at == 0.0 ? Part{} - kInfinity : Part{} + kNan;
    const Part beyond = at > 0.0 ? at : at_zero;
    return at > 0.0 && at < kInfinity ? value : beyond;
  });
}

// log(1 + x): what rounding loses in u = 1 + x is (x - (u - 1)) / u of the logarithm.
template <int Lanes>
PF_INLINE PackOf<Lanes> log1p(PackOf<Lanes> x) {
  using Pack = PackOf<Lanes>;
  using Part = typename Pack::Part;
  return each_part<Lanes>([&](auto i) PF_ALWAYS_INLINE {
    const Part at = x.part[i], u = 1.0 + at;
    const Part lost = u > 2.0 ? 1.0 - (u - at) : at - (u - 1.0);
    const Part value = log_of<Part, typename Pack::PartU64>(u, lost / u);
    const Part at_zero = u == 0.0 ? Part{} - kInfinity : Part{} + kNan;
    const Part beyond = u > 0.0 ? u : at_zero;
    return u > 0.0 && u < kInfinity ? value : beyond;
  });
}

}  // namespace PF_ISA
}  // namespace polyfuse
