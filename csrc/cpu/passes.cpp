// The vectorised loops, compiled once per instruction set. Eight samples at a time, whatever the
// register width, in float64: lanes and order of every sum are the same on every machine.
#include "passes.h"

#include <type_traits>

#include "../core/basis.h"
#include "../core/criterion.h"
#include "elementary.h"
#include "pack.h"

#define PF_JOIN_(a, b) a##b
#define PF_JOIN(a, b) PF_JOIN_(a, b)

namespace polyfuse {
inline namespace PF_ISA {
namespace {

// Bytes: a page ahead, which is where the hardware's own prefetching stops.
constexpr int kPrefetch = 4096;

inline bool finite(double v) { return v - v == 0.0; }

// Up to eight samples at any stride; what is left out (past the end, or not finite) has weight 0.
template <class T>
inline void load_weighted(const Data& data, int64_t i, int64_t end, Pack& x, Pack& y, Pack& w) {
  const T* xs = static_cast<const T*>(data.x);
  const T* ys = static_cast<const T*>(data.y);
  double x_lane[kLanes], y_lane[kLanes], w_lane[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t j = i + lane;
    double xj = data.shift, yj = 0.0, wj = 0.0;
    if (j < end) {
      xj = xs[j * data.x_stride];
      if (ys) yj = ys[j * data.y_stride];
      wj = 1.0;
      if (data.omit && !(finite(xj) && finite(yj))) {
        xj = data.shift;
        yj = wj = 0.0;
      }
    }
    x_lane[lane] = xj;
    y_lane[lane] = yj;
    w_lane[lane] = wj;
  }
  x = Pack::load(x_lane);
  y = Pack::load(y_lane);
  w = Pack::load(w_lane);
}

// f(k) for every k < n, unrolled where the number N is known at compile time.
template <int N, class F>
PF_INLINE void for_terms(int n, F&& f) {
  if constexpr (N > 0)
    unroll<N>(f);
  else
    for (int k = 0; k < n; ++k) f(k);
}

// Calls body(u, y, weight) for every eight samples; weight is std::true_type where all count, and
// y is 0 where not WithY. Plain: with a loop of its own for u = x.
template <class T, bool WithY, bool Plain = true, class Body>
PF_INLINE void for_each_pack_of(const Data& data, int64_t begin, int64_t end, Body&& body) {
  int64_t i = begin;
  const T* xs = static_cast<const T*>(data.x);
  const T* ys = static_cast<const T*>(data.y);
  const double shift = data.shift, scale = data.scale;
  const auto dense = [&](auto variable) PF_ALWAYS_INLINE {
    for (; i + kLanes <= end; i += kLanes) {
      __builtin_prefetch(reinterpret_cast<const char*>(xs + i) + kPrefetch);
      Pack y{};
      if constexpr (WithY) {
        __builtin_prefetch(reinterpret_cast<const char*>(ys + i) + kPrefetch);
        y = Pack::load(ys + i);
      }
      body(variable(Pack::load(xs + i)), y, std::true_type{});
    }
  };
  if (data.x_stride == 1 && data.y_stride == 1 && !data.omit) {
    if (Plain && shift == 0.0 && scale == 1.0)
      dense([](Pack x) PF_ALWAYS_INLINE { return x; });
    else
      dense([&](Pack x) PF_ALWAYS_INLINE { return (x - shift) * scale; });
  }
  for (; i < end; i += kLanes) {
    Pack x, y, w;
    load_weighted<T>(data, i, end, x, y, w);
    body((x - data.shift) * data.scale, y, w);
  }
}

template <bool Plain = true, class Body>
PF_INLINE void for_each_pack(const Data& data, int64_t begin, int64_t end, Body&& body) {
  if (data.dtype == Dtype::Float32)
    for_each_pack_of<float, true, Plain>(data, begin, end, body);
  else
    for_each_pack_of<double, true, Plain>(data, begin, end, body);
}

template <class Lanes>
PF_INLINE Lanes weighted(Lanes v, std::true_type) {
  return v;
}
PF_INLINE Pack weighted(Pack v, Pack w) { return v * w; }
// Value or slope of the samples that count, else 0; that of the others may be nan or inf.
template <class Rho, class Weight>
PF_INLINE Pack counted(Pack v, Weight w) {
  if constexpr (std::is_same<Weight, std::true_type>::value ||
                std::is_same<Rho,
                             SquaredError>::value)  // few registers, and the product takes none
    return weighted(v, w);
  else
    return if_less(w, 1.0, Pack{}, v);
}
PF_INLINE Pack ones(std::true_type) { return Pack::all(1.0); }
PF_INLINE Pack ones(Pack w) { return w; }

// Calls f with n_terms as a compile-time constant up to 8, and as 0 (read it at run time) beyond.
template <class F>
inline void with_terms(int n_terms, F&& f) {
  switch (n_terms) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 5: return f(std::integral_constant<int, 5>{});
    case 6: return f(std::integral_constant<int, 6>{});
    case 7: return f(std::integral_constant<int, 7>{});
    case 8: return f(std::integral_constant<int, 8>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

// The same for the most usual degrees alone: less code.
template <class F>
inline void with_usual_terms(int n_terms, F&& f) {
  switch (n_terms) {
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

template <class Rho, int K>
void loss_pass(const Data& data, const Criterion& criterion, const double* coef, int n_terms,
               int64_t begin, int64_t end, double* out) {
  const int terms = K ? K : n_terms;
  Pack value{}, count{}, sums[K ? K : kMaxTerms] = {};
  int64_t whole = 0;  // samples of packs without weights
  for_each_pack<std::is_same_v<Rho, SquaredError>>(
      data, begin, end, [&](Pack u, Pack y, auto w) PF_ALWAYS_INLINE {
        const Pack prediction = horner(coef, terms, u);
        value += counted<Rho>(Rho::value(prediction, y, criterion), w);
        Pack product = counted<Rho>(Rho::slope(prediction, y, criterion), w);
        for_terms<K>(terms, [&](auto k) {
          sums[k] += product;
          if (k + 1 < terms) product *= u;
        });
        if (std::is_same<decltype(w), std::true_type>::value)
          whole += kLanes;
        else
          count += ones(w);
      });
  out[0] = value.total();
  for_terms<K>(terms, [&](auto k) { out[1 + k] = Rho::kFactor * sums[k].total(); });
  out[1 + terms] = count.total() + static_cast<double>(whole);
}

// Sums of u^k, of u^k r and of r^2 over lanes of samples; power[0] counts those with a weight.
template <class Lanes, int K>
struct MomentSums {
  Lanes power[K ? 2 * K - 1 : 2 * kMaxTerms - 1] = {}, cross[K ? K : kMaxTerms] = {}, square{};

  template <class Weight>
  PF_INLINE void add(const double* coef, int terms, Lanes u, Lanes y, Weight w) {
    const Lanes r = weighted(horner(coef, terms, u) - y, w);
    cross[0] += r;
    square += r * r;
    Lanes product = weighted(u, w), rising = u;
    for_terms<K ? K - 1 : 0>(terms - 1, [&](auto j) PF_ALWAYS_INLINE {
      const int k = j + 1;
      power[k] += product;
      cross[k] += product * r;
      if (k + 1 < terms) product *= u;
    });
    // u^(K - 1) u^j adds in one operation what a next power would take two for
    for_terms<K ? K - 1 : 0>(terms - 1, [&](auto j) PF_ALWAYS_INLINE {
      power[terms + j] += product * rising;
      rising *= u;
    });
  }

  // f(lanes of a, lanes of b) for every sum.
  template <class Other, class F>
  PF_INLINE void with(Other& other, F&& f) {
    unroll<2 * K - 1>([&](auto k) PF_ALWAYS_INLINE { f(power[k], other.power[k]); });
    unroll<K>([&](auto k) PF_ALWAYS_INLINE { f(cross[k], other.cross[k]); });
    f(square, other.square);
  }
};

constexpr int64_t kSweep = 1024;  // samples, which stay in first-level cache

// Where a pack's sums are too many for the registers: one register of lanes after the other, over
// so many samples at a time that they are still in cache. Returns where it stopped.
template <class T, int K>
int64_t sweep(const Data& data, const double* coef, int64_t begin, int64_t end,
              MomentSums<Pack, K>& sums) {
  constexpr int lanes = Pack::kPartLanes;
  using Lanes = PackOf<lanes>;
  const T* xs = static_cast<const T*>(data.x);
  const T* ys = static_cast<const T*>(data.y);
  const double shift = data.shift, scale = data.scale;
  for (; begin + kSweep <= end; begin += kSweep)
    for (int part = 0; part < Pack::kParts; ++part) {
      MomentSums<Lanes, K> own;
      own.with(sums,
               [&](Lanes& mine, Pack& all) PF_ALWAYS_INLINE { mine.part[0] = all.part[part]; });
      for (int64_t i = begin; i < begin + kSweep; i += kLanes) {
        if (part == 0) {
          __builtin_prefetch(reinterpret_cast<const char*>(xs + i) + kPrefetch);
          __builtin_prefetch(reinterpret_cast<const char*>(ys + i) + kPrefetch);
        }
        const Lanes x = Lanes::load(xs + i + part * lanes), y = Lanes::load(ys + i + part * lanes);
        own.add(coef, K, (x - shift) * scale, y, std::true_type{});
      }
      own.with(sums,
               [&](Lanes& mine, Pack& all) PF_ALWAYS_INLINE { all.part[part] = mine.part[0]; });
    }
  return begin;
}

template <int K>
void moments_pass(const Data& data, const double* coef, int n_terms, int64_t begin, int64_t end,
                  double* out) {
  const int terms = K ? K : n_terms;
  MomentSums<Pack, K> sums;
  int64_t whole = 0;  // samples of packs without weights
  if constexpr (Pack::kParts > 1 && K > 1 && K <= 5) {
    if (data.x_stride == 1 && data.y_stride == 1 && !data.omit) {
      whole = -begin;
      begin = data.dtype == Dtype::Float32 ? sweep<float, K>(data, coef, begin, end, sums)
                                           : sweep<double, K>(data, coef, begin, end, sums);
      whole += begin;
    }
  }
  for_each_pack(data, begin, end, [&](Pack u, Pack y, auto w) PF_ALWAYS_INLINE {
    if (std::is_same<decltype(w), std::true_type>::value)
      whole += kLanes;
    else
      sums.power[0] += ones(w);
    sums.add(coef, terms, u, y, w);
  });
  for_terms<K ? 2 * K - 1 : 0>(2 * terms - 1, [&](auto k) { out[k] = sums.power[k].total(); });
  out[0] += static_cast<double>(whole);
  for_terms<K>(terms, [&](auto k) { out[2 * terms - 1 + k] = sums.cross[k].total(); });
  out[3 * terms - 1] = sums.square.total();
}

// Few samples: the columns of V stay in registers and first-level cache for all epochs. What an
// epoch takes is the chain of operations from one sum over the samples to the next,
//   r = (V coast - y) + V p_g sum,   sum = V^T r,
// where coast, the parameters without the gradient's part in them, is known one epoch earlier.
template <class Lanes, int K, int Packs, bool Momentum>
void resident_epochs(const Data& data, const LinearStep* step, int64_t epochs, double* params,
                     double* momentum) {
  constexpr int lanes = Lanes::kParts * Lanes::kPartLanes;
  constexpr bool ahead = Packs > 0;  // more operations, and a shorter chain of them
  constexpr int max_packs = Packs ? Packs : kResidentSamples / lanes;
  const int n_packs = Packs ? Packs : static_cast<int>((data.n + lanes - 1) / lanes);
  Lanes column[K][max_packs], gain[K][max_packs], target[max_packs];
  double power[kLanes], y_lane[kLanes];
  for (int first = 0; first < n_packs * lanes; first += kLanes) {
    Pack x, y, w;
    if (data.dtype == Dtype::Float32)
      load_weighted<float>(data, first, data.n, x, y, w);
    else
      load_weighted<double>(data, first, data.n, x, y, w);
    const Pack u = (x - data.shift) * data.scale;
    y.store(y_lane);
    for (int k = 0; k < K; ++k, w *= u) {
      w.store(power);
      for (int lane = 0; lane < kLanes && first + lane < n_packs * lanes; lane += lanes) {
        const int i = (first + lane) / lanes;
        column[k][i] = Lanes::load(power + lane);
        gain[k][i] = column[k][i] * step[k].p_g;
        target[i] = Lanes::load(y_lane + lane);
      }
    }
  }
  Lanes p[K], b[K], sum[K] = {}, coast[K], fade[K];  // fade: the momentum buffer without gradient
  for (int k = 0; k < K; ++k) coast[k] = Lanes::all(params[k]), fade[k] = Lanes::all(momentum[k]);
  const auto arrive = [&](int k) PF_ALWAYS_INLINE {
    p[k] = coast[k] + sum[k] * step[k].p_g;
    if (Momentum) b[k] = fade[k] + sum[k] * step[k].b_g;
  };
  for (int64_t epoch = 0; epoch < epochs; ++epoch) {
    constexpr int chains = Packs < 3 ? 1 : 2;  // sums side by side
    Lanes next[K][chains] = {};
    for (int k = 0; !ahead && k < K; ++k) arrive(k);
    const auto add_pack = [&](auto i) PF_ALWAYS_INLINE {
      Lanes r = column[0][i] * (ahead ? coast[0] : p[0]) - target[i];
      for (int k = 1; k < K; ++k) r += column[k][i] * (ahead ? coast[k] : p[k]);
      for (int k = 0; ahead && k < K; ++k) r += gain[k][i] * sum[k];
      for (int k = 0; k < K; ++k) next[k][i % chains] += r * column[k][i];
    };
    if constexpr (Packs > 0)
      unroll<Packs>(add_pack);
    else
      for (int i = 0; i < n_packs; ++i) add_pack(i);
    for (int k = 0; k < K; ++k) {
      if (ahead) arrive(k);
      coast[k] = p[k] * step[k].p_p;
      if (Momentum) {
        coast[k] += b[k] * step[k].p_b;
        fade[k] = p[k] * step[k].b_p + b[k] * step[k].b_b;
      }
      sum[k] = (chains == 2 ? next[k][0] + next[k][1] : next[k][0]).total_everywhere();
    }
  }
  for (int k = 0; k < K; ++k) {
    arrive(k);
    params[k] = p[k].lane(0);
    if (Momentum) momentum[k] = b[k].lane(0);
  }
}

template <class Lanes, int K, int Packs>
void resident_packs(const Data& data, const LinearStep* step, bool with_momentum, int64_t epochs,
                    double* params, double* momentum) {
  if (with_momentum)
    resident_epochs<Lanes, K, Packs, true>(data, step, epochs, params, momentum);
  else
    resident_epochs<Lanes, K, Packs, false>(data, step, epochs, params, momentum);
}

void resident(const Data& data, int n_terms, const LinearStep* step, bool with_momentum,
              int64_t epochs, double* params, double* momentum) {
  with_terms(n_terms, [&](auto k) {
    constexpr int terms = k() ? k() : 1;  // the caller keeps n_terms within the cases
    const auto run = [&](auto lanes, auto packs) {
      resident_packs<decltype(lanes), terms, packs()>(data, step, with_momentum, epochs, params,
                                                      momentum);
    };
    if constexpr (terms <= 4) {
      // Narrow packs need more instructions and fewer steps to their total.
      if (data.n <= 4) return run(Pair{}, std::integral_constant<int, 2>{});
      if (data.n <= 6) return run(Pair{}, std::integral_constant<int, 3>{});
      if (data.n <= 10) return run(Pair{}, std::integral_constant<int, 5>{});
      if (data.n <= 12) return run(Quad{}, std::integral_constant<int, 3>{});
      if (data.n <= 16) return run(Quad{}, std::integral_constant<int, 4>{});
      if (data.n <= 24) return run(Quad{}, std::integral_constant<int, 6>{});
    }
    run(Pack{}, std::integral_constant<int, 0>{});
  });
}

template <class T, int K>
void evaluate_pass(const Data& data, const double* coef, int n_terms, int64_t begin, int64_t end,
                   T* y) {
  int64_t i = begin;
  for_each_pack_of<T, false>(data, begin, end, [&](Pack u, Pack, auto) PF_ALWAYS_INLINE {
    const Pack value = horner(coef, K ? K : n_terms, u);
    if (i + kLanes <= end)
      value.store(y + i);
    else
      for (int lane = 0; i + lane < end; ++lane) y[i + lane] = T(value.lane(lane));
    i += kLanes;
  });
}

template <int K>
void project_pass(const Data& data, int n_terms, int64_t begin, int64_t end, double* out) {
  const int terms = K ? K : n_terms;
  Pack sums[K ? K : kMaxTerms] = {};
  for_each_pack(data, begin, end, [&](Pack u, Pack y, auto w) PF_ALWAYS_INLINE {
    Pack product = weighted(y, w);
    for_terms<K>(terms, [&](auto k) {
      sums[k] += product;
      if (k + 1 < terms) product *= u;
    });
  });
  for_terms<K>(terms, [&](auto k) { out[k] = sums[k].total(); });
}

void loss(const Data& data, const Criterion& criterion, const double* coef, int n_terms,
          int64_t begin, int64_t end, double* out) {
  const auto pass = [&](auto rho) {
    with_usual_terms(n_terms, [&](auto k) {
      loss_pass<decltype(rho), k()>(data, criterion, coef, n_terms, begin, end, out);
    });
  };
  switch (criterion.kind) {
    case CriterionKind::SquaredError:
      return with_terms(n_terms, [&](auto k) {
        loss_pass<SquaredError, k()>(data, criterion, coef, n_terms, begin, end, out);
      });
    case CriterionKind::AbsoluteError: return pass(AbsoluteError{});
    case CriterionKind::SmoothL1: return pass(SmoothL1{});
    case CriterionKind::Huber: return pass(Huber{});
    case CriterionKind::SoftMargin: return pass(SoftMargin{});
    case CriterionKind::BCEWithLogits: return pass(BCEWithLogits{});
    case CriterionKind::PoissonNLL: return pass(PoissonNLL{});
    case CriterionKind::KLDiv: return pass(KLDiv{});
    case CriterionKind::GaussianNLL: return pass(GaussianNLL{});
  }
}

void moments(const Data& data, const double* coef, int n_terms, int64_t begin, int64_t end,
             double* out) {
  with_terms(n_terms, [&](auto k) { moments_pass<k()>(data, coef, n_terms, begin, end, out); });
}

void evaluate(const Data& data, const double* coef, int n_terms, int64_t begin, int64_t end,
              void* y) {
  with_terms(n_terms, [&](auto k) {
    if (data.dtype == Dtype::Float32)
      evaluate_pass<float, k()>(data, coef, n_terms, begin, end, static_cast<float*>(y));
    else
      evaluate_pass<double, k()>(data, coef, n_terms, begin, end, static_cast<double*>(y));
  });
}

void project(const Data& data, int n_terms, int64_t begin, int64_t end, double* out) {
  with_terms(n_terms, [&](auto k) { project_pass<k()>(data, n_terms, begin, end, out); });
}

void count_nonfinite(const Data& data, int64_t begin, int64_t end, double* out) {
  Data all = data;
  all.omit = false;
  Pack bad{};
  for_each_pack(all, begin, end, [&](Pack u, Pack y, auto) PF_ALWAYS_INLINE {
    const Pack nothing = (u - u) + (y - y);  // nan where u or y is nan or inf
    for (int i = 0; i < Pack::kParts; ++i)
      bad.part[i] -= __builtin_convertvector(nothing.part[i] != 0.0, Pack::Part);
  });
  out[0] = bad.total();
}

}  // namespace
}  // namespace PF_ISA

const Passes PF_JOIN(passes_, PF_ISA) = {
    PF_ISA_NAME,      PF_ISA::loss,    PF_ISA::moments,
    PF_ISA::evaluate, PF_ISA::project, PF_ISA::count_nonfinite,
    PF_ISA::resident,
};

}  // namespace polyfuse
