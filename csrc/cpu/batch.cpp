#include "batch.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "../core/orthogonal.h"
#include "batch_descent.h"
#include "passes_isa.h"

namespace polyfuse {
inline namespace PF_ISA {
namespace {

// The samples of fits from `fit` on, into[pack * n + i]. Row by row where fits are neighbours in
// memory, or else fit by fit.
template <class T>
void gather_of(const Series& series, int64_t n, int64_t fit, int count, FitPack* into) {
  const T* from = static_cast<const T*>(series.at) + fit * series.fit;
  const int packs = (count + kFitLanes - 1) / kFitLanes;
  if (series.fit == 1 && count == packs * kFitLanes) {
    for (int64_t i = 0; i < n; ++i) {
      const T* row = from + i * series.sample;
      for (int p = 0; p < packs; ++p) {
        __builtin_prefetch(row + count + p * kFitLanes);  // of the next tile
        into[p * n + i] = FitPack::load(row + p * kFitLanes);
      }
    }
    return;
  }
  for (int lane = 0; lane < packs * kFitLanes; ++lane) {
    const T* one = from + std::min(lane, count - 1) * series.fit;
    double* to = reinterpret_cast<double*>(into + lane / kFitLanes * n) + lane % kFitLanes;
    for (int64_t i = 0; i < n; ++i) to[i * kFitLanes] = one[i * series.sample];
  }
}

void gather(const Series& series, int64_t n, int64_t fit, int count, FitPack* into) {
  if (series.dtype == Dtype::Float32)
    gather_of<float>(series, n, fit, count, into);
  else
    gather_of<double>(series, n, fit, count, into);
}

// along[k] = <q_k, y> of C columns; y becomes the residuals, whose sum of squares is returned.
template <int C>
FitPack project_columns(int64_t n, int n_terms, const double* q, FitPack* y, FitPack* along) {
  FitPack sum[C] = {}, rest{};
  for (int64_t i = 0; i < n; ++i)
    unroll<C>([&](auto k) PF_ALWAYS_INLINE { sum[k] += y[i] * q[i * n_terms + k]; });
  for (int64_t i = 0; i < n; ++i) {
    FitPack left = y[i];
    unroll<C>([&](auto k) PF_ALWAYS_INLINE { left = left - sum[k] * q[i * n_terms + k]; });
    rest += left * left;
    y[i] = left;
  }
  unroll<C>([&](auto k) { along[k] = sum[k]; });
  return rest;
}

// All columns, some at a time.
FitPack project(int64_t n, int n_terms, const double* q, FitPack* y, FitPack* along) {
  FitPack rest{};
  for (int k = 0; k < n_terms;) {
    const auto columns = [&](auto c) {
      rest = project_columns<c()>(n, n_terms, q + k, y, along + k);
      k += c();
    };
    switch (std::min(n_terms - k, 4)) {
      case 1: columns(std::integral_constant<int, 1>{}); break;
      case 2: columns(std::integral_constant<int, 2>{}); break;
      case 3: columns(std::integral_constant<int, 3>{}); break;
      default: columns(std::integral_constant<int, 4>{});
    }
  }
  return rest;
}

// Memory of one thread.
struct Workspace {
  std::vector<FitPack> x, y, w, now, before, residual, factor;
};

// As select_degree has it, up to what all degrees share: n samples, k terms; total: of squares of
// y, whose rounding bounds what a polynomial leaves.
double degree_score(DegreeBy by, double n, int k, double squares, double total) {
  constexpr double rounding = 0x1p-55;
  const double least = std::max(rounding * rounding * total, std::numeric_limits<double>::min());
  const double fit = n * std::log(std::max(squares, least) / n);
  if (by == DegreeBy::Bic) return fit + k * std::log(n);
  return n > k + 1 ? fit + 2 * k * n / (n - k - 1) : INFINITY;
}

// Of the points that count: their mean, and how far they are on average from the first of them.
std::pair<FitPack, FitPack> centre_and_spread(int64_t n, const FitPack* x, const FitPack* w,
                                              FitPack counted) {
  FitPack first = x[0], sum{}, distance{};
  if (w)
    for (int64_t i = n - 1; i >= 0; --i) first = if_zero(w[i], first, x[i]);
  for (int64_t i = 0; i < n; ++i) {
    const FitPack t = w ? if_zero(w[i], FitPack{}, x[i] - first) : x[i] - first;
    sum += t;
    distance += abs(t);
  }
  const FitPack each = if_zero(counted, FitPack{}, 1.0 / counted);
  return {first + sum * each, distance * each};
}

// One pack of fits: from y (and x, w where they are its own) to what the run leaves behind.
template <int K>
class FitsAbreast {
 public:
  FitsAbreast(const BatchPlan& plan, int64_t fit, int count)
      : plan_(plan), batch_(plan.batch), fit_(fit), count_(count) {}

  void shared(FitPack* y) {
    const Design& design = *plan_.design;
    const int64_t n = batch_.n;
    const FitPack weight =
        FitPack::all(batch_.criterion.weight / (batch_.mean ? design.weight : 1.0));
    rank_ = FitPack::all(design.rank);
    if (streams()) return stream(design.u, y, nullptr, weight);
    rest_ = project(n, batch_.n_terms, design.q, y, along_);
    const AtOptimum<double, K> optimum{batch_.n_terms, design.factor, along_, rest_, weight};
    if (!batch_.solve && batch_.engine == Engine::ClosedForm) {
      start();
      leap<K>(plan_, optimum, recorder(), lanes_);
      return leave_run();
    }
    counted_ = FitPack::all(design.counted);
    total_ = FitPack::all(design.weight);
    finish(optimum);
  }

  void own(FitPack* x, FitPack* y, const FitPack* w, Workspace& work) {
    const int64_t n = batch_.n;
    const int terms = K ? K : batch_.n_terms;
    const FitPack one = FitPack::all(1.0);
    if (w)
      for (int64_t i = 0; i < n; ++i) counted_ += if_zero(w[i], FitPack{}, one);
    else
      counted_ = FitPack::all(static_cast<double>(n));
    if (w)
      for (int64_t i = 0; i < n; ++i) total_ += w[i];
    else
      total_ = counted_;
    const FitPack whole = FitPack::all(batch_.criterion.weight);
    const FitPack weight = batch_.mean ? if_zero(total_, FitPack{}, whole / total_) : whole;
    if (streams()) {
      for (int64_t i = 0; i < n; ++i) x[i] = (x[i] - batch_.shift) * batch_.scale;
      rank_ = if_zero(counted_, FitPack{}, FitPack::all(terms));
      return stream(x, y, w, weight);
    }
    const auto [centre, spread] = centre_and_spread(n, x, w, counted_);
    const FitPack scale = if_zero(spread, one, 1.0 / spread);
    for (int64_t i = 0; i < n; ++i) {
      const FitPack t = (x[i] - centre) * scale;
      x[i] = w ? if_zero(w[i], FitPack{}, t) : t;
    }
    Orthogonal<FitPack> q;
    orthogonalise(n, terms, x, w, y, work.now.data(), work.before.data(), q,
                  [](int, int64_t, const FitPack&) {});
    for (int k = 0; k < terms; ++k) along_[k] = q.along[k];
    rest_ = q.rest;
    rank_ = q.rank;
    // t = (u / batch.scale + batch.shift - centre) scale
    factorise(terms, batch_.basis, q, batch_.scale / scale, (batch_.shift - centre) * scale,
              work.factor.data());
    finish(AtOptimum<FitPack, K>{terms, work.factor.data(), along_, rest_, weight});
  }

 private:
  bool streams() const { return !batch_.solve && batch_.engine == Engine::Stream; }

  template <class U>
  void stream(const U* u, const FitPack* y, const FitPack* w, FitPack weight) {
    start();
    descend_on(plan_, u, y, w, weight, recorder(), lanes_);
    leave_run();
  }

  template <class F>
  void finish(const AtOptimum<F, K>& optimum) {
    if (batch_.solve) return leave_optimum(optimum);
    start();
    descend(plan_, optimum, recorder(), lanes_);
    leave_run();
  }

  template <class F>
  void leave_optimum(const AtOptimum<F, K>& optimum) {
    const int terms = K ? K : batch_.n_terms;
    FitPack* const p = lanes_.p;
    if (batch_.degree) choose_degrees();
    back_substitute(terms, optimum.factor, along_, p);
    // nan where there is no optimum
    const FitPack there = if_zero(rank_, FitPack::all(NAN), rest_ - rest_);
    lanes_.loss = rest_ * optimum.weight + there;
    for (int j = 0; j < terms; ++j) p[j] += there;
    if (batch_.determination) {
      FitPack explained{};
      for (int k = 1; k < terms; ++k) explained += along_[k] * along_[k];
      // the rounding of y, whose squares they are parts of, is not explained
      const FitPack about_mean = rest_ + explained, least = 1e-30 * along_[0] * along_[0];
      explained = if_less(least - about_mean, 0.0, explained, FitPack::all(NAN));
      store_row(1.0 - rest_ / (rest_ + explained) + there, batch_.determination + fit_, count_);
    }
    if (batch_.covariance) leave_covariance(optimum, there);
    store_row(counted_, batch_.counted + fit_, count_);
    store_row(total_, batch_.weight_sum + fit_, count_);
    FitPack status = rest_ - rest_;  // 0 converged, 2 rank deficient, nan
    status += if_less(rank_ - FitPack::all(terms), 0.0, FitPack::all(2.0), FitPack{});
    if (!all_finite(status))
      for (int i = 0; i < kFitLanes; ++i)
        if (!finite(status.lane(i))) status = with_lane(status, i, 3.0);
    store_row(status, reinterpret_cast<int32_t*>(batch_.status) + fit_, count_);
    leave();
  }

  // Terms beyond the best degree of a fit are left out; what they explained is left over.
  void choose_degrees() {
    const int terms = K ? K : batch_.n_terms;
    double along[kMaxTerms][kFitLanes], rest[kFitLanes], degree[kFitLanes];
    for (int k = 0; k < terms; ++k) along_[k].store(along[k]);
    rest_.store(rest);
    for (int i = 0; i < kFitLanes; ++i) {
      const double n = counted_.lane(i);
      double total = rest[i], squares[kMaxTerms];
      for (int k = terms - 1; k >= 0; --k) {
        squares[k] = total;
        total += along[k][i] * along[k][i];
      }
      int best = 0;
      double lowest = INFINITY;
      for (int k = 0; k < static_cast<int>(rank_.lane(i)); ++k) {
        const double score = degree_score(batch_.degree_by, n, k + 1, squares[k], total);
        if (score < lowest) lowest = score, best = k;
      }
      for (int k = best + 1; k < terms; ++k) along[k][i] = 0.0;
      rest[i] = squares[best];
      degree[i] = best;
    }
    for (int k = 0; k < terms; ++k) along_[k] = FitPack::load(along[k]);
    rest_ = FitPack::load(rest);
    degree_ = FitPack::load(degree);
    store_row(degree_, batch_.degree + fit_, count_);
  }

  // The inverse of factor^T factor, whose columns' roots are solved for one by one; nan where the
  // rank is less than full.
  template <class F>
  void leave_covariance(const AtOptimum<F, K>& optimum, FitPack there) {
    const int terms = K ? K : batch_.n_terms;
    FitPack root[kMaxTerms][kMaxTerms];
    for (int c = 0; c < terms; ++c) {
      FitPack unit[kMaxTerms] = {};
      unit[c] = if_less(degree_ - FitPack::all(c), 0.0, FitPack{}, FitPack::all(1.0));
      back_substitute(terms, optimum.factor, unit, root[c]);
    }
    there += if_less(rank_ - FitPack::all(terms), 0.0, FitPack::all(NAN), FitPack{});
    for (int i = 0; i < terms; ++i)
      for (int j = 0; j < terms; ++j) {
        FitPack sum = there;
        for (int c = 0; c < terms; ++c) sum += root[c][i] * root[c][j];
        store_row(sum, batch_.covariance + (i * terms + j) * batch_.fits + fit_, count_);
      }
  }

  void start() {
    for (int j = 0; j < (K ? K : batch_.n_terms); ++j) {
      const int64_t at = j * batch_.fits + fit_;
      lanes_.p[j] = load_row(batch_.params, batch_.dtype, at, count_);
      lanes_.grad[j] = FitPack{};
      lanes_.bounded = batch_.low != nullptr;
      if (lanes_.bounded) {
        lanes_.low[j] = load_row(batch_.low + at, count_);
        lanes_.high[j] = load_row(batch_.high + at, count_);
      }
      for (int r = 0; r < kKept; ++r)
        lanes_.kept[j][r] =
            batch_.kept[r] ? load_row(batch_.kept[r], batch_.dtype, at, count_) : FitPack{};
    }
  }

  Recorder recorder() const { return {batch_.recorded + fit_, batch_.fits, count_}; }

  void leave_run() {
    const Schedule& schedule = batch_.schedule;
    const FitPack all_epochs = FitPack::all(static_cast<double>(schedule.epochs));
    FitPack unbounded = lanes_.loss - lanes_.loss;  // 0, or nan
    for (int j = 0; j < (K ? K : batch_.n_terms); ++j) unbounded += lanes_.p[j] - lanes_.p[j];
    // 1 step limit, 0 converged, nan
    FitPack status =
        unbounded + if_less(lanes_.epochs - all_epochs, 0.0, FitPack{}, FitPack::all(1.0));
    status = if_zero(rank_, FitPack::all(NAN), status);
    if (!all_finite(status))
      for (int i = 0; i < kFitLanes; ++i)
        status = with_lane(status, i, status_of(i, status.lane(i)));
    lanes_.loss += if_zero(rank_, FitPack::all(NAN), FitPack{});  // of no sample
    store_row(status, reinterpret_cast<int32_t*>(batch_.status) + fit_, count_);
    if (batch_.epochs) store_row(lanes_.epochs, batch_.epochs + fit_, count_);
    for (int j = 0; j < (K ? K : batch_.n_terms); ++j) {
      const int64_t at = j * batch_.fits + fit_;
      if (schedule.epochs > 0) store_row(lanes_.grad[j], batch_.grad, batch_.dtype, at, count_);
      for (int r = 0; r < kKept; ++r)
        if (batch_.kept[r]) store_row(lanes_.kept[j][r], batch_.kept[r], batch_.dtype, at, count_);
    }
    leave();
  }

  double status_of(int i, double otherwise) const {
    const FitStatus status = rank_.lane(i) == 0.0                 ? FitStatus::RankDeficient
                             : !finite(lanes_.start_loss.lane(i)) ? FitStatus::NonFinite
                             : !finite(otherwise) ? FitStatus::Diverged
                                                  : static_cast<FitStatus>(otherwise);
    return static_cast<double>(static_cast<int>(status));
  }

  void leave() {
    for (int j = 0; j < (K ? K : batch_.n_terms); ++j)
      store_row(lanes_.p[j], batch_.params, batch_.dtype, j * batch_.fits + fit_, count_);
    store_row(lanes_.loss, batch_.loss + fit_, count_);
    store_row(rank_, batch_.rank + fit_, count_);
  }

  const BatchPlan& plan_;
  const Batch& batch_;
  const int64_t fit_;
  const int count_;
  Lanes lanes_;
  FitPack along_[kMaxTerms], rest_{}, rank_{}, counted_{}, total_{},
      degree_ = FitPack::all(kMaxTerms);
};

// Samples with a nan or inf, or of weight 0, get weight 0 and harmless numbers; whether there are.
bool leave_out(int64_t n, bool omit, FitPack* x, FitPack* y, FitPack* w) {
  FitPack gaps{};
  for (int64_t i = 0; i < n; ++i) {
    const FitPack sum = (y[i] - y[i]) + (x ? x[i] - x[i] : FitPack{});  // 0, or nan
    FitPack here = w[i];
    if (omit) here = if_zero(sum, here, FitPack{});
    gaps += if_zero(here, FitPack::all(1.0), FitPack{});
    y[i] = if_zero(here, FitPack{}, y[i]);
    if (x) x[i] = if_zero(here, FitPack{}, x[i]);
    w[i] = here;
  }
  return gaps.total() != 0.0;
}

void run_tile(const BatchPlan& plan, int64_t begin, int64_t end, Workspace& work) {
  const Batch& batch = plan.batch;
  const int64_t n = batch.n;
  const int count = static_cast<int>(end - begin), packs = (count + kFitLanes - 1) / kFitLanes;
  const auto sized = [&](std::vector<FitPack>& v, int64_t size) {
    if (static_cast<int64_t>(v.size()) < size) v.resize(static_cast<size_t>(size));
    return v.data();
  };
  FitPack* const y = sized(work.y, packs * n);
  gather(batch.y, n, begin, count, y);
  bool whole = plan.design != nullptr;
  if (whole && plan.design->root)
    for (int64_t i = 0; i < packs * n; ++i) {
      const double root = plan.design->root[i % n];
      y[i] = root == 0.0 ? FitPack{} : y[i] * root;
    }
  if (whole && batch.omit) {  // a gap in some fit
    FitPack nothing{};
    for (int64_t i = 0; i < packs * n; ++i) nothing += y[i] - y[i];
    whole = all_finite(nothing);
  }
  FitPack *x = nullptr, *w = nullptr;
  if (!whole) {
    if (plan.design && plan.design->root) gather(batch.y, n, begin, count, y);
    x = sized(work.x, packs * n);
    gather(batch.x, n, begin, count, x);
    sized(work.now, n), sized(work.before, n), sized(work.factor, batch.n_terms * batch.n_terms);
    if (batch.w.at || batch.omit) {
      w = sized(work.w, packs * n);
      if (batch.w.at)
        gather(batch.w, n, begin, count, w);
      else
        std::fill(w, w + packs * n, FitPack::all(1.0));
    }
  }
  for (int p = 0; p < packs; ++p) {
    const int64_t fit = begin + p * kFitLanes;
    const int lanes = static_cast<int>(std::min<int64_t>(kFitLanes, end - fit));
    if (w) leave_out(n, batch.omit, x + p * n, y + p * n, w + p * n);
    with_usual_terms(batch.n_terms, [&](auto k) {
      FitsAbreast<k()> fits(plan, fit, lanes);
      if (whole)
        fits.shared(y + p * n);
      else
        fits.own(x + p * n, y + p * n, w ? w + p * n : nullptr, work);
    });
  }
}

}  // namespace

void batch_fits(const BatchPlan& plan, int64_t begin, int64_t end) {
  Workspace work;
  // rows of a tile are read whole cache lines at a time, and stay in the second-level cache
  const int64_t tile = plan.batch.n <= 128 ? kTileFits : plan.batch.n <= 512 ? 32 : 16;
  for (int64_t at = begin; at < end; at += tile) {
    const int64_t to = std::min(end, at + tile);
    run_tile(plan, at, to, work);
  }
}

}  // namespace PF_ISA
}  // namespace polyfuse
