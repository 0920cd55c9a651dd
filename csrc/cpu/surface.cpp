#include "surface.h"

#include <algorithm>
#include <vector>

#include "../core/criterion.h"
#include "passes_isa.h"
#include "rows.h"
#include "samples.h"

namespace polyfuse {
inline namespace PF_ISA {
namespace {

constexpr int kPacks = 16;  // whose terms stay in the first-level cache
constexpr int kSamples = kPacks * kLanes;

// Samples [i, i + count) of a column, as float64; what is past them is 0.
template <class T>
void load_column(const T* from, int64_t stride, int count, double* into) {
  if (stride == 1)
    for (int j = 0; j < count; ++j) into[j] = from[j];
  else
    for (int j = 0; j < count; ++j) into[j] = from[j * stride];
  std::fill(into + count, into + kSamples, 0.0);
}
void load_column(const Series& series, int64_t i, int64_t column, int count, double* into) {
  const int64_t at = i * series.sample + column * series.fit;
  if (series.dtype == Dtype::Float32)
    load_column(static_cast<const float*>(series.at) + at, series.sample, count, into);
  else
    load_column(static_cast<const double*>(series.at) + at, series.sample, count, into);
}

// Samples side by side: terms [K, kPacks], and [kPacks] of y and of weights (0 for what is left
// out) of one output at a time.
struct Block {
  Pack y[kPacks], w[kPacks], u[kMaxVariables][kPacks];
  std::vector<Pack> phi;

  explicit Block(const Surface& s) : phi(static_cast<size_t>(s.n_terms * kPacks)) {
    std::fill_n(w, kPacks, Pack::all(1.0));
  }

  // The samples from i on, and their first output.
  void load(const Surface& s, int64_t i, int64_t end) {
    first = i;
    count = static_cast<int>(std::min<int64_t>(kSamples, end - i));
    weighted = s.omit || s.w.at || count < kSamples;
    for (int j = 0; j < s.n_variables; ++j) {
      load_column(s.x, i, j, count, lanes(u[j]));
      for (Pack& v : u[j]) v = (v - s.shift[j]) * s.scale[j];
    }
    if (weighted) leave_out(s);
    load_output(s, 0);
    fill_terms(s, u, phi.data());
  }

  void load_output(const Surface& s, int c) {
    if (s.w.at) {
      load_column(s.w, first, c, count, lanes(w));
    } else if (weighted) {
      std::fill(lanes(w), lanes(w) + count, 1.0);
      std::fill(lanes(w) + count, lanes(w) + kSamples, 0.0);
    }
    if (s.y.at) load_column(s.y, first, c, count, lanes(y));
    for (int p = 0; weighted && p < kPacks; ++p) {
      w[p] = if_zero(counted[p], Pack{}, w[p]);
      if (s.omit) w[p] = if_zero(nothing[p] + (y[p] - y[p]), w[p], Pack{});
      y[p] = if_zero(w[p], Pack{}, y[p]);
    }
  }

  // V coef
  void predict(const Surface& s, const double* coef, Pack* value) const {
    const int n_terms = s.n_terms, stride = s.n_outputs;
    for (int p = 0; p < kPacks; p += 4) {
      Pack sum[4] = {};
      for (int k = 0; k < n_terms; ++k)
        unroll<4>([&](auto q)
                      PF_ALWAYS_INLINE { sum[q] += phi[k * kPacks + p + q] * coef[k * stride]; });
      unroll<4>([&](auto q) PF_ALWAYS_INLINE { value[p + q] = sum[q]; });
    }
  }

  // sums += V^T g
  void project(const Surface& s, const Pack* g, Pack* sums) const {
    const int n_terms = s.n_terms, stride = s.n_outputs;
    for (int k = 0; k < n_terms; ++k) {
      Pack sum[4] = {};
      const Pack* const at = &phi[static_cast<size_t>(k * kPacks)];
      for (int p = 0; p < kPacks; p += 4)
        unroll<4>([&](auto q) PF_ALWAYS_INLINE { sum[q] += at[p + q] * g[p + q]; });
      sums[k * stride] += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
  }

 private:
  int64_t first = 0;
  int count = 0;
  bool weighted = false;
  Pack counted[kPacks],
      nothing[kPacks];  // 0 where no output counts; 0, or nan of x that is not finite

  static double* lanes(Pack* packs) { return reinterpret_cast<double*>(packs); }

  // Samples that do not count in any output lie at u = 0.
  void leave_out(const Surface& s) {
    Pack sum[kPacks] = {};
    for (int p = 0; p < kPacks; ++p) {
      counted[p] = Pack::all(1.0);
      nothing[p] = Pack{};
      for (int j = 0; j < s.n_variables; ++j) nothing[p] += u[j][p] - u[j][p];
    }
    for (int c = 0; c < s.n_outputs; ++c) {
      load_output(s, c);
      for (int p = 0; p < kPacks; ++p) sum[p] += w[p];
    }
    for (int p = 0; p < kPacks; ++p) {
      counted[p] = sum[p];
      for (int j = 0; j < s.n_variables; ++j) u[j][p] = if_zero(sum[p], Pack{}, u[j][p]);
    }
  }
};

template <class Rho>
void loss_of(const Surface& s, const double* coef, int64_t begin, int64_t end, double* out) {
  const int n_params = s.n_terms * s.n_outputs;
  Block block(s);
  std::vector<Pack> sums(static_cast<size_t>(n_params));
  Pack value{}, count{}, prediction[kPacks], slope[kPacks];
  for (int64_t i = begin; i < end; i += kSamples) {
    block.load(s, i, end);
    for (int c = 0; c < s.n_outputs; ++c) {
      if (c) block.load_output(s, c);
      block.predict(s, coef + c, prediction);
      for (int p = 0; p < kPacks; ++p) {
        const auto rho = Rho::at(prediction[p], block.y[p], s.criterion);
        const Pack w = block.w[p];
        slope[p] = if_zero(w, Pack{}, w * rho.slope);
        value += if_zero(w, Pack{}, w * rho.value);
        count += w;
      }
      block.project(s, slope, &sums[c]);
    }
  }
  out[0] = value.total();
  out[1] = count.total();
  for (int j = 0; j < n_params; ++j) out[2 + j] = Rho::kFactor * sums[j].total();
}

// Moments that share phi[a], up to four of them.
template <int C, bool Weighted>
PF_INLINE void add_products(const Product* product, const Pack* phi, const Pack* w, Pack* sums) {
  Pack sum[C];
  const Pack *const a = phi + product->a * kPacks, *b[C];
  unroll<C>([&](auto c) PF_ALWAYS_INLINE {
    sum[c] = sums[product[c].moment];
    b[c] = phi + product[c].b * kPacks;
  });
  for (int p = 0; p < kPacks; ++p) {
    const Pack of_a = Weighted ? w[p] * a[p] : a[p];
    unroll<C>([&](auto c) PF_ALWAYS_INLINE { sum[c] += of_a * b[c][p]; });
  }
  unroll<C>([&](auto c) PF_ALWAYS_INLINE { sums[product[c].moment] = sum[c]; });
}

template <bool Weighted>
void add_all_products(const Surface& s, const Pack* phi, const Pack* w, Pack* sums) {
  for (const Product *product = s.products, *last = product + s.n_products; product != last;) {
    int same = 1;
    while (same < 4 && product + same != last && product[same].a == product->a) ++same;
    switch (same) {
      case 1: add_products<1, Weighted>(product, phi, w, sums); break;
      case 2: add_products<2, Weighted>(product, phi, w, sums); break;
      case 3: add_products<3, Weighted>(product, phi, w, sums); break;
      default: add_products<4, Weighted>(product, phi, w, sums);
    }
    product += same;
  }
}

}  // namespace

// out: [value, sum of w, K C sums of w slope phi]
void surface_loss(const Surface& s, const double* coef, int64_t begin, int64_t end, double* out) {
  with_rho(s.criterion.kind, [&](auto rho) { loss_of<decltype(rho)>(s, coef, begin, end, out); });
}

// out: [sum w r^2, sum w, K C sums of w phi r, M sums of w phi phi]
void surface_moments(const Surface& s, const double* coef, int64_t begin, int64_t end,
                     double* out) {
  const int n_params = s.n_terms * s.n_outputs;
  Block block(s);
  std::vector<Pack> sums(static_cast<size_t>(s.n_products)), cross(static_cast<size_t>(n_params));
  Pack square{}, count{}, rest[kPacks];
  for (int64_t i = begin; i < end; i += kSamples) {
    block.load(s, i, end);
    const bool weighted = s.omit || s.w.at || end - i < kSamples;
    const auto add = weighted ? add_all_products<true> : add_all_products<false>;
    add(s, block.phi.data(), block.w, sums.data());
    for (int c = 0; c < s.n_outputs; ++c) {
      if (c) block.load_output(s, c);
      block.predict(s, coef + c, rest);
      for (int p = 0; p < kPacks; ++p) {
        const Pack r = rest[p] - block.y[p];
        rest[p] = block.w[p] * r;
        square += rest[p] * r;
        count += block.w[p];
      }
      block.project(s, rest, &cross[c]);
    }
  }
  out[0] = square.total();
  out[1] = count.total();
  for (int j = 0; j < n_params; ++j) out[2 + j] = cross[j].total();
  for (int m = 0; m < s.n_products; ++m) out[2 + n_params + m] = sums[m].total();
}

}  // namespace PF_ISA
}  // namespace polyfuse
