#include "passes_isa.h"
#include "samples.h"

namespace polyfuse {
inline namespace PF_ISA {
namespace {

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

}  // namespace

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

}  // namespace PF_ISA
}  // namespace polyfuse
