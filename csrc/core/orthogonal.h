// Polynomials that are orthogonal on the points of a fit, by Forsythe's recurrence (Generation and
// use of orthogonal polynomials for data-fitting with a digital computer, 1957). No Gram matrix is
// formed: the square root of its condition number is all that rounding is multiplied by. For one
// fit (V = double) and for several in the lanes of a pack.
#pragma once

#include <cmath>

#include "basis.h"
#include "criterion.h"
#include "macros.h"
#include "problem.h"

namespace polyfuse {
inline namespace PF_ISA {

using std::sqrt;

// Monic polynomials that are smaller on the points, relative to powers of the points' standard
// deviation, are rounding alone: the points are fewer than the terms.
constexpr double kDetermined = 1e-26;

template <class V, int M = kMaxTerms>
struct Orthogonal {
  V origin, middle, scale;  // t = ((x - origin) - middle) scale has mean zero, and size one
  V mean[M];                // t q_k = size[k + 1] q_{k+1} + mean[k] q_k + size[k] q_{k-1}
  V size[M];                // 0 where the points do not determine q_k
  V along[M];               // <q_k, y>
  V first;                  // norm of the constant 1
  V weight;                 // sum of the weights
  V rest;                   // sum of squared residuals
  V rank;
  // t = slope u + offset of u = (x - shift) / slope * scale
  PF_HD V offset(double shift) const { return ((like(origin, shift) - origin) - middle) * scale; }
};

// From one monic polynomial p_k to the next, p_{k+1} = (t - mean) p_k - step p_{k-1}; slope p_k is
// what it explains.
template <class V>
struct Recursion {
  V total;  // sum of the weights
  V determined = like(total, 1.0), least{}, variance{}, norm{}, former{};
  V mean{}, step{}, slope{};

  // Given <p_k, p_k>, <t p_k, p_k> and <r, p_k>; k from 0 on.
  template <int M>
  PF_HD void take(int k, V square, V weighted, V along, Orthogonal<V, M>& q) {
    if (k == 1) {
      const V centre = q.mean[0];
      variance = square * former;
      least = kDetermined * (square + centre * centre * total);
    } else if (k > 1) {
      least = (k == 2 ? kDetermined * total * variance : least) * variance;
    }
    determined = if_less(least - square, 0.0, determined, V{});
    const V per_square = if_zero(determined, V{}, 1.0 / square);
    step = square * former;
    const V size = sqrt(k == 0 ? square : step);
    norm = if_zero(determined, V{}, k == 0 ? size : norm * size);
    if (k == 0) q.first = norm;
    q.mean[k] = mean = weighted * per_square;
    q.size[k] = k == 0 ? V{} : if_zero(determined, V{}, size);
    q.along[k] = along * norm * per_square;
    q.rank += determined;
    slope = along * per_square;
    former = per_square;
  }
};

// Weighted sums over points x and values r, about one of the points.
template <class V>
struct Beginning {
  V origin, shifted{}, spread{}, along{}, weight{};

  PF_HD void add(const V& x, const V& r) {
    const V t = x - origin;
    shifted += t;
    spread += abs(t);
    along += r;
  }
  PF_HD void add(const V& x, const V& r, const V& w) {
    const V t = x - origin;
    shifted += w * t;
    spread += w * abs(t);
    along += w * r;
    weight += w;
  }
};

// w: null if not kWeighted: 1
template <bool kWeighted, class V>
PF_HD Beginning<V> begin_fit(int64_t n, const V* x, const V* w, const V* r) {
  Beginning<V> sums{x[0]};
  if (kWeighted) {
    for (int64_t i = n - 1; i >= 0; --i) sums.origin = if_zero(w[i], sums.origin, x[i]);
    for (int64_t i = 0; i < n; ++i) sums.add(x[i], r[i], w[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) sums.add(x[i], r[i]);
    sums.weight = like(sums.origin, static_cast<double>(n));
  }
  return sums;
}

// Points x, which become t, with weights w (null if not kWeighted: 1) and values r, which become
// the residuals of all terms but the last; memory for two polynomials. keep(k, i, v) is given the
// monic polynomials, v of degree k at point i.
template <bool kWeighted, class V, class Keep>
PF_HD void orthogonalise(const Beginning<V>& sums, int64_t n, int n_terms, V* x, const V* w, V* r,
                         V* now, V* before, Orthogonal<V>& result, Keep&& keep) {
  const auto weighed = [&](int64_t i, const V& v) { return kWeighted ? w[i] * v : v; };
  const V origin = sums.origin, shifted = sums.shifted, spread = sums.spread, total = sums.weight;
  for (int64_t i = 0; i < n; ++i) keep(0, i, like(origin, 1.0));
  V square = total, along = sums.along, weighted{};
  const V middle = if_zero(total, V{}, shifted / total);
  const V scale = if_zero(spread, like(spread, 1.0), total / spread);
  result.origin = origin, result.middle = middle, result.scale = scale, result.weight = total;
  result.rank = result.rest = V{};
  Recursion<V> recursion{total};
  for (int k = 0; k < n_terms; ++k) {
    recursion.take(k, square, weighted, along, result);
    const V mean = recursion.mean, step = recursion.step, slope = recursion.slope;
    if (k + 1 == n_terms) {
      V rest{};
      for (int64_t i = 0; i < n; ++i) {
        const V p = k == 0 ? like(slope, 1.0) : k == 1 ? x[i] : now[i], left = r[i] - slope * p;
        rest += weighed(i, left) * left;
      }
      result.rest = rest;
      return;
    }
    V squares{}, times_t{}, times_r{};
    const auto pass = [&](auto&& polynomials) {
      for (int64_t i = 0; i < n; ++i) {
        V p, next;
        polynomials(i, p, next);
        const V left = r[i] - slope * p, of_next = weighed(i, next);
        r[i] = left;
        squares += of_next * next;
        times_t += of_next * (next * x[i]);
        times_r += of_next * left;
        keep(k + 1, i, next);
      }
    };
    if (k == 0) {
      pass([&](int64_t i, V& p, V& next) {
        const V t = ((x[i] - origin) - middle) * scale;
        p = like(t, 1.0);
        next = x[i] = kWeighted ? if_zero(w[i], V{}, t) : t;
      });
    } else if (k == 1) {
      pass([&](int64_t i, V& p, V& next) {
        p = x[i];
        next = now[i] = (p - mean) * p - step;
      });
    } else {
      pass([&](int64_t i, V& p, V& next) {
        p = now[i];
        next = now[i] = (x[i] - mean) * p - step * (k == 2 ? x[i] : before[i]);
        before[i] = p;
      });
    }
    square = squares, weighted = times_t, along = times_r;
  }
}

// The same for one fit, with no memory of its points: every pass computes polynomials and residuals
// anew. pass(f, sums) calls f(t, y, w) for the points, and has the sums of all who share them.
template <int M, class Pass>
PF_HD void orthogonalise(int n_terms, double total, Orthogonal<double, M>& q, Pass&& pass) {
  Recursion<double> recursion{total};
  q.rank = 0.0;
  double step[M], slope[M];
  // p_k at t, and what those below it leave of y
  const auto at = [&](int k, double t, double& p, double& y) {
    double before = 0.0;
    p = 1.0;
    PF_UNROLL
    for (int j = 0; j < k; ++j) {
      y -= slope[j] * p;
      const double next = (t - q.mean[j]) * p - step[j] * before;
      before = p;
      p = next;
    }
  };
  PF_UNROLL
  for (int k = 0; k < n_terms; ++k) {
    double sums[3] = {};
    const auto add = [&](double t, double y, double w) {
      double p;
      at(k, t, p, y);
      const double of_p = w * p;
      sums[0] += of_p * p;
      sums[1] += of_p * (p * t);
      sums[2] += of_p * y;
    };
    pass(add, sums);
    recursion.take(k, sums[0], sums[1], sums[2], q);
    step[k] = recursion.step;
    slope[k] = recursion.slope;
  }
  double rest[1] = {};
  const auto add = [&](double t, double y, double w) {
    double p;
    at(n_terms, t, p, y);
    rest[0] += w * y * y;
  };
  pass(add, rest);
  q.rest = rest[0];
}

// f(k, q_k(t)) for the orthonormal polynomials; 0 where the points do not determine them.
template <int M, class F>
PF_HD void orthonormal(int n_terms, const Orthogonal<double, M>& q, double t, F&& f) {
  double now = if_zero(q.first, 0.0, 1.0 / q.first), before = 0.0;
  PF_UNROLL
  for (int k = 0; k < n_terms; ++k) {
    f(k, now);
    if (k + 1 == n_terms) return;
    const double next = (t - q.mean[k]) * now - q.size[k] * before;
    before = now;
    now = if_zero(q.size[k + 1], 0.0, next / q.size[k + 1]);
  }
}

// factor[k, j] = <q_k, phi_j(u)> with t = slope u + offset, upper triangular: the QR factorisation
// of the design matrix.
template <class V, int M>
PF_HD void factorise(int n_terms, const Recurrence& basis, const Orthogonal<V, M>& q, V per_slope,
                     V offset, V* factor) {
  const auto at = [&](int k, int j) -> V& { return factor[k * n_terms + j]; };
  PF_UNROLL
  for (int k = 0; k < n_terms; ++k) at(k, 0) = k == 0 ? q.first : V{};
  PF_UNROLL
  for (int j = 0; j + 1 < n_terms; ++j) {
    PF_UNROLL
    for (int k = 0; k < n_terms; ++k) {
      V sum = (q.mean[k] - offset) * at(k, j);
      if (k > 0) sum += q.size[k] * at(k - 1, j);
      if (k + 1 < n_terms) sum += q.size[k + 1] * at(k + 1, j);
      sum = sum * per_slope;
      if (basis.alpha) {
        sum = sum * basis.alpha[j] + at(k, j) * basis.beta[j];
        if (j > 0) sum += at(k, j - 1) * basis.gamma[j];
      }
      at(k, j + 1) = k <= j + 1 ? sum : V{};
    }
  }
}

// The coefficients in u of the optimum, 0 where it is not determined.
template <class F, class V>
PF_HD void back_substitute(int n_terms, const F* factor, const V* along, V* coef) {
  PF_UNROLL
  for (int k = n_terms - 1; k >= 0; --k) {
    const F pivot = factor[k * n_terms + k];
    V rest = along[k];
    PF_UNROLL
    for (int j = k + 1; j < n_terms; ++j) rest = rest - factor[k * n_terms + j] * coef[j];
    coef[k] = rest * if_zero(pivot, like(pivot, 0.0), 1.0 / pivot);
  }
}

}  // namespace PF_ISA
}  // namespace polyfuse
