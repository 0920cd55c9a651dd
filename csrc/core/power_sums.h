// The polynomials of orthogonal.h from sums of powers of the points, by Chebyshev's algorithm
// (Gautschi, On generating orthogonal polynomials, 1982): one pass over the samples, in which
// rounding is multiplied by the condition of the Gram matrix. For one fit (V = double) and for
// several in the lanes of a pack.
#pragma once

#include "orthogonal.h"
#include "terms.h"

namespace polyfuse {
inline namespace PF_ISA {

// Where a monic polynomial keeps less of its power than this, float32 would see the rounding.
constexpr double kTrusted = 1e-6;
constexpr double kLeastPower = 1e-280;  // smaller sums are not accurate

template <int K, class V>
struct PowerSums {
  V origin;                      // one of the points
  V power[2 * K - 1], along[K];  // sums of w t^k and of w t^k r, with t = x - origin

  PF_HD explicit PowerSums(const V& at) : origin(at) {
    unroll<2 * K - 1>([&](auto k) PF_ALWAYS_INLINE { power[k] = V{}; });
    unroll<K>([&](auto k) PF_ALWAYS_INLINE { along[k] = V{}; });
  }

  // w: null if not kWeighted: 1; power[0] is then another's to set.
  template <bool kWeighted>
  PF_HD void add(const V& x, const V& r, const V* w) {
    const V t = x - origin;
    V of_t = t, last = kWeighted ? *w : t;  // t^k and w t^k
    if (kWeighted) power[0] += last;
    along[0] += kWeighted ? last * r : r;
    unroll<K - 1>([&](auto below) PF_ALWAYS_INLINE {
      constexpr int k = below + 1;
      if (kWeighted || k > 1) last = last * t;
      power[k] += last;
      along[k] += last * r;
    });
    unroll<K - 1>([&](auto below) PF_ALWAYS_INLINE {
      power[K + below] += last * of_t;
      of_t = of_t * t;
    });
  }

  // All of q but the rest; the coefficients in t of the optimum; and what p_k explains of the sum
  // of squares. Returns 0, or nan where the sums say too little.
  PF_HD V orthogonalise(Orthogonal<V>& q, V* coef, V* explained) const {
    const V zero{}, one = like(zero, 1.0);
    q.origin = origin, q.middle = zero, q.scale = one, q.weight = power[0], q.rank = zero;
    // Of p_k: <p_k, t^l> and <p_k, t^l r> by l, its coefficients in t; and the same of p_(k-1).
    V moment[2 * K - 1], moment_before[2 * K - 1], slope[K], slope_before[K], p[K], p_before[K];
    unroll<2 * K - 1>([&](auto l)
                          PF_ALWAYS_INLINE { moment[l] = power[l], moment_before[l] = zero; });
    unroll<K>([&](auto l) PF_ALWAYS_INLINE {
      slope[l] = along[l];
      slope_before[l] = coef[l] = p_before[l] = zero;
      p[l] = l == 0 ? one : zero;
    });
    V doubt{};
    Recursion<V> recursion{power[0]};
    unroll<K>([&](auto k) PF_ALWAYS_INLINE {
      const V square = moment[k], step = square * recursion.former;
      doubt += if_less(power[2 * k] * kTrusted + kLeastPower - square, 0.0, zero, like(zero, NAN));
      const V weighted = k + 1 < K ? moment[k + 1] - step * moment_before[k] : zero;
      recursion.take(k, square, weighted, slope[0], q);
      explained[k] = recursion.slope * slope[0];
      unroll<k + 1>([&](auto l) PF_ALWAYS_INLINE { coef[l] += recursion.slope * p[l]; });
      if constexpr (k + 1 < K) {
        // (t - mean) now - step before
        const auto next = [&](const V& times_t, V& now, V& before) PF_ALWAYS_INLINE {
          const V value = times_t - recursion.mean * now - step * before;
          before = now;
          now = value;
        };
        unroll<2 * (K - 1 - k)>([&](auto l) PF_ALWAYS_INLINE {
          next(moment[k + l + 1], moment[k + l], moment_before[k + l]);
        });
        unroll<K - 1 - k>([&](auto l)
                              PF_ALWAYS_INLINE { next(slope[l + 1], slope[l], slope_before[l]); });
        unroll<k + 2>([&](auto l) PF_ALWAYS_INLINE {
          constexpr int down = k + 1 - l;
          next(down > 0 ? p[down - 1] : zero, p[down], p_before[down]);
        });
      }
    });
    return doubt;
  }
};

}  // namespace PF_ISA
}  // namespace polyfuse
