#include <algorithm>
#include <vector>

#include "../core/cross_entropy.h"
#include "../element.h"
#include "passes_isa.h"
#include "rows.h"
#include "samples.h"
#include "stacked.h"

namespace polyfuse {
inline namespace PF_ISA {
namespace {

double number(const Series& series, int64_t at) { return read(series.dtype, series.at, at); }

// Of eight samples: kept is 0 for those that are left out, counted what they count in a mean.
struct Eight {
  Pack target, kept, counted;
};

// Their terms; a sample of weight 0 lies at u = 0.
void load_terms(const Stacked& s, int64_t i, int count, const double* weight, Pack* phi) {
  const auto variable = [&](int v, double shift, double scale) {
    double x[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      const int64_t at = (i + std::min(j, count - 1)) * s.x.sample + v * s.x.fit;
      x[j] = weight[j] == 0.0 ? shift : number(s.x, at);
    }
    return (Pack::load(x) - shift) * scale;
  };
  if (const Surface* const several = s.surface) {
    Pack u[kMaxVariables][1];
    for (int v = 0; v < several->n_variables; ++v)
      u[v][0] = variable(v, several->shift[v], several->scale[v]);
    return fill_terms(*several, u, phi);
  }
  const Pack u = variable(0, s.shift, s.scale);
  phi[0] = Pack::all(1.0);
  for (int k = 0; k + 1 < s.n_terms; ++k)
    phi[k + 1] = next_of(s.basis, k, u, phi[k], k > 0 ? phi[k - 1] : Pack{});
}

// share[c]: what class c gets of the target, times the weight of the sample.
Eight load_eight(const Stacked& s, int64_t i, int count, Pack* share, Pack* phi) {
  const Criterion& criterion = s.criterion;
  double target[kLanes], weight[kLanes], counted[kLanes], lane[kLanes];
  for (int j = 0; j < kLanes; ++j)
    weight[j] = j < count ? s.w.at ? number(s.w, (i + j) * s.w.sample) : 1.0 : 0.0;
  load_terms(s, i, count, weight, phi);
  for (int j = 0; j < kLanes; ++j) {
    const int64_t at = i + std::min(j, count - 1);
    const int64_t t = s.index ? s.index[at * s.index_stride] : 0;
    if (s.index && t == criterion.ignore) weight[j] = 0.0;
    target[j] = static_cast<double>(t);
    const bool among = t >= 0 && t < s.n_outputs;
    if (!among && weight[j] != 0.0) weight[j] = NAN;
    counted[j] =
        s.index && among ? weight[j] * weight_of(criterion, static_cast<int>(t)) : weight[j];
  }
  const Pack w = Pack::load(weight), one = Pack::all(1.0);
  const Eight eight{Pack::load(target), if_zero(w, Pack{}, one), Pack::load(counted)};
  for (int c = 0; c < s.n_outputs; ++c) {
    Pack q = if_zero(eight.target - c, one, Pack{});
    if (!s.index) {
      for (int j = 0; j < kLanes; ++j)
        lane[j] = weight[j] == 0.0 ? 0.0 : number(s.y, (i + j) * s.y.sample + c * s.y.fit);
      q = Pack::load(lane);
    }
    share[c] = if_zero(w, Pack{}, w * share_of(criterion, s.n_outputs, c, q));
  }
  return eight;
}

}  // namespace

// out: [value, what samples count, those that are kept, K C sums of slope phi]
void class_loss(const Stacked& s, const double* coef, int64_t begin, int64_t end, double* out) {
  const int terms = s.n_terms, classes = s.n_outputs;
  // Of a class alone, the other classes' terms are no part of the loss, even where they are 0 inf.
  const bool alone = s.index && s.criterion.smoothing == 0.0;
  std::vector<Pack> memory(static_cast<size_t>(classes * (2 + terms) + terms));
  Pack *const z = memory.data(), *const share = z + classes, *const phi = share + classes;
  Pack* const sums = phi + terms;
  Pack value{}, counted{}, kept{};
  for (int64_t i = begin; i < end; i += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, end - i));
    const Eight eight = load_eight(s, i, count, share, phi);
    for (int c = 0; c < classes; ++c) {
      Pack logit{};
      for (int k = 0; k < terms; ++k) logit += phi[k] * coef[k * classes + c];
      z[c] = logit;
    }
    const Pack found = cross_entropy(InTurn{classes}, share, z, [&](int c, const Pack& term) {
      const Pack mine = if_zero(eight.kept, Pack{}, term);
      return alone ? if_zero(eight.target - c, mine, Pack{}) : mine;
    });
    value += if_zero(eight.kept, Pack{}, found);
    counted += eight.counted;
    kept += eight.kept;
    for (int c = 0; c < classes; ++c)
      for (int k = 0; k < terms; ++k) sums[k * classes + c] += z[c] * phi[k];
  }
  out[0] = value.total();
  out[1] = counted.total();
  out[2] = kept.total();
  for (int j = 0; j < terms * classes; ++j) out[3 + j] = sums[j].total();
}

}  // namespace PF_ISA
}  // namespace polyfuse
