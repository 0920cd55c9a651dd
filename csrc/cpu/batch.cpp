#include "batch.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "batch_descent.h"
#include "batch_rows.h"
#include "passes_isa.h"

namespace polyfuse {
inline namespace PF_ISA {
namespace {

// along[k] = <q_k, y> of C columns; y, of which read(i) is y[i], becomes the residuals, whose sum
// of squares is returned.
template <int C, class Read>
FitPack project_columns(int64_t n, int n_terms, const double* q, FitPack* y, FitPack* along,
                        Read&& read) {
  FitPack sum[C] = {}, rest{};
  for (int64_t i = 0; i < n; ++i) {
    const FitPack value = read(i);
    unroll<C>([&](auto k) PF_ALWAYS_INLINE { sum[k] += value * q[i * n_terms + k]; });
  }
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
FitPack project(int64_t n, int n_terms, const double* q, FitPack* y, FitPack* along,
                const float* row, int64_t stride) {
  FitPack rest{};
  const auto there = [&](int64_t i) PF_ALWAYS_INLINE { return y[i]; };
  const auto from_rows = [&](int64_t i) PF_ALWAYS_INLINE {
    __builtin_prefetch(row + i * stride + kAhead);
    return y[i] = FitPack::load(row + i * stride);
  };
  for (int k = 0; k < n_terms;) {
    const auto columns = [&](auto c) {
      rest = k == 0 && row ? project_columns<c()>(n, n_terms, q, y, along, from_rows)
                           : project_columns<c()>(n, n_terms, q + k, y, along + k, there);
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
  std::vector<FitPack> x, y, w, t, nothing, now, before, factor;
};

// One pack of fits: from y (and x, w where they are its own) to what the run leaves behind.
template <int K>
class FitsAbreast {
 public:
  FitsAbreast(const BatchPlan& plan, int64_t fit, int count)
      : plan_(plan), batch_(plan.batch), fit_(fit), count_(count) {}

  void shared(FitPack* y, const float* row) {
    const Design& design = *plan_.design;
    const int64_t n = batch_.n;
    const FitPack weight =
        FitPack::all(batch_.criterion.weight / (batch_.mean ? design.weight : 1.0));
    rank_ = FitPack::all(design.rank);
    if (streams()) return stream(design.u, y, nullptr, weight);
    rest_ = project(n, batch_.n_terms, design.q, y, along_, row, batch_.y.sample);
    const AtOptimum<double, K> optimum{batch_.n_terms, design.factor, along_, rest_, weight};
    if (!batch_.solve && batch_.engine == Engine::ClosedForm) {
      start();
      leap(plan_, optimum, recorder(), lanes_);
      return leave_run();
    }
    counted_ = FitPack::all(design.counted);
    total_ = FitPack::all(design.weight);
    finish(optimum);
  }

  // From sums of powers; false where these say too little.
  template <int Terms>
  bool own(const PowerSums<Terms, FitPack>& sums, const FitPack* x, const FitPack* y,
           const FitPack* w, Workspace& work) {
    const bool plain = batch_.solve && !(batch_.covariance || batch_.degree || batch_.basis.alpha);
    return plain ? solve(sums, x, y, w) : orthogonal(sums, x, y, w, work);
  }

  void own(const Beginning<FitPack>& sums, FitPack* x, FitPack* y, const FitPack* w,
           Workspace& work) {
    const int64_t n = batch_.n;
    const int terms = K ? K : batch_.n_terms;
    count(w, sums.weight);
    Orthogonal<FitPack> q;
    const auto unkept = [](int, int64_t, const FitPack&) {};
    FitPack *const now = work.now.data(), *const before = work.before.data();
    if (streams() && batch_.schedule.first_epoch > 0) {
      rank_ = load_row(batch_.rank + fit_, count_);
    } else {
      FitPack *t = x, *r = y;
      if (streams()) {  // for the rank alone
        t = std::copy_n(x, n, work.t.data()) - n;
        r = std::fill_n(work.nothing.data(), n, FitPack{}) - n;
      }
      if (w)
        orthogonalise<true>(sums, n, terms, t, w, r, now, before, q, unkept);
      else
        orthogonalise<false>(sums, n, terms, t, w, r, now, before, q, unkept);
      rank_ = q.rank;
    }
    if (!streams()) return finish(q, work);
    for (int64_t i = 0; i < n; ++i) x[i] = (x[i] - batch_.shift) * batch_.scale;
    stream(x, y, w, loss_weight());
  }

 private:
  // The coefficients alone: no roots, and fewer quotients.
  template <int Terms>
  bool solve(const PowerSums<Terms, FitPack>& sums, const FitPack* x, const FitPack* y,
             const FitPack* w) {
    FitPack explained[Terms], *const p = lanes_.p;
    Orthogonal<FitPack> unused;
    if (!sums.orthogonalise(unused, p, explained).all_finite()) return false;
    look_back(sums, p, x, y, w);
    // In u, with t = u / scale + shift - origin.
    const FitPack offset = batch_.shift - sums.origin;
    double factor = 1.0;
    unroll<Terms>([&](auto k) PF_ALWAYS_INLINE {
      for (int j = Terms - 2; j >= k; --j) p[j] += offset * p[j + 1];
      p[k] *= FitPack::all(factor);
      factor /= batch_.scale;
    });
    FitPack of_curve{};
    unroll<Terms - 1>([&](auto k) PF_ALWAYS_INLINE { of_curve += explained[k + 1]; });
    leave_solution(determination(explained[0], of_curve, rest_), loss_weight());
    return true;
  }

  template <int Terms>
  bool orthogonal(const PowerSums<Terms, FitPack>& sums, const FitPack* x, const FitPack* y,
                  const FitPack* w, Workspace& work) {
    FitPack coef[Terms], explained[Terms];
    Orthogonal<FitPack> q;
    if (!sums.orthogonalise(q, coef, explained).all_finite()) return false;
    look_back(sums, coef, x, y, w);
    q.rest = rest_;
    finish(q, work);
    return true;
  }

  // What the coefficients in t leave.
  template <int Terms>
  void look_back(const PowerSums<Terms, FitPack>& sums, const FitPack* coef, const FitPack* x,
                 const FitPack* y, const FitPack* w) {
    FitPack rest{}, c[Terms];
    std::copy_n(coef, Terms, c);
    for (int64_t i = 0; i < batch_.n; ++i) {
      const FitPack t = x[i] - sums.origin;
      FitPack value = c[Terms - 1];
      unroll<Terms - 1>([&](auto k) PF_ALWAYS_INLINE { value = value * t + c[Terms - 2 - k]; });
      const FitPack left = y[i] - value;
      rest += (w ? w[i] * left : left) * left;
    }
    rest_ = rest;
    rank_ = FitPack::all(Terms);
    count(w, sums.power[0]);
  }

  bool streams() const { return !batch_.solve && batch_.engine == Engine::Stream; }

  template <class U>
  void stream(const U* u, const FitPack* y, const FitPack* w, FitPack weight) {
    start();
    descend_on(plan_, u, y, w, weight, recorder(), lanes_);
    leave_run();
  }

  void count(const FitPack* w, FitPack total) {
    total_ = total;
    counted_ = w ? FitPack{} : total;
    for (int64_t i = 0; w && i < batch_.n; ++i)
      counted_ += if_zero(w[i], FitPack{}, FitPack::all(1.0));
  }

  FitPack loss_weight() const {
    const FitPack whole = FitPack::all(batch_.criterion.weight);
    return batch_.mean ? if_zero(total_, FitPack{}, whole / total_) : whole;
  }

  void finish(const Orthogonal<FitPack>& q, Workspace& work) {
    const int terms = K ? K : batch_.n_terms;
    for (int k = 0; k < terms; ++k) along_[k] = q.along[k];
    rank_ = q.rank, rest_ = q.rest;
    factorise(terms, batch_.basis, q, batch_.scale / q.scale, q.offset(batch_.shift),
              work.factor.data());
    finish(AtOptimum<FitPack, K>{terms, work.factor.data(), along_, rest_, loss_weight()});
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
    if (batch_.covariance) leave_covariance(optimum);
    leave_solution(determination(terms, along_, rest_), optimum.weight);
  }

  // 0, or nan where there is no optimum.
  FitPack there() const { return if_zero(rank_, FitPack::all(NAN), rest_ - rest_); }

  void leave_solution(const FitPack& share, const FitPack& weight) {
    const int terms = K ? K : batch_.n_terms;
    const FitPack none = there();
    lanes_.loss = rest_ * weight + none;
    for (int j = 0; j < terms; ++j) lanes_.p[j] += none;
    if (batch_.determination) store_row(share + none, batch_.determination + fit_, count_);
    store_row(counted_, batch_.counted + fit_, count_);
    store_row(total_, batch_.weight_sum + fit_, count_);
    FitPack status = rest_ - rest_;  // 0 converged, 2 rank deficient, nan
    status += if_less(rank_ - FitPack::all(terms), 0.0, FitPack::all(2.0), FitPack{});
    if (!status.all_finite())
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
      double of_fit[kMaxTerms];
      for (int k = 0; k < terms; ++k) of_fit[k] = along[k][i];
      degree[i] = choose_degree<kMaxTerms>(batch_.degree_by, terms, counted_.lane(i),
                                           static_cast<int>(rank_.lane(i)), of_fit, rest[i]);
      for (int k = 0; k < terms; ++k) along[k][i] = of_fit[k];
    }
    for (int k = 0; k < terms; ++k) along_[k] = FitPack::load(along[k]);
    rest_ = FitPack::load(rest);
    degree_ = FitPack::load(degree);
    store_row(degree_, batch_.degree + fit_, count_);
  }

  // nan where the rank is less than full
  template <class F>
  void leave_covariance(const AtOptimum<F, K>& optimum) {
    const int terms = K ? K : batch_.n_terms;
    const FitPack none =
        there() + if_less(rank_ - FitPack::all(terms), 0.0, FitPack::all(NAN), FitPack{});
    covariance<kMaxTerms>(terms, optimum.factor, degree_, [&](int i, int j, FitPack value) {
      double* const row = batch_.covariance + (i * terms + j) * batch_.fits;
      store_row(value + none, row + fit_, count_);
    });
  }

  void start() {
    const int64_t first = batch_.schedule.first_epoch;
    for (int j = 0; j < (K ? K : batch_.n_terms); ++j) {
      const int64_t at = j * batch_.fits + fit_;
      lanes_.p[j] = load_row(batch_.params, batch_.dtype, at, count_);
      // of fits that have settled
      lanes_.grad[j] = first > 0 ? load_row(batch_.grad, batch_.dtype, at, count_) : FitPack{};
      lanes_.bounded = batch_.low != nullptr;
      if (lanes_.bounded) {
        lanes_.low[j] = load_row(batch_.low + at, count_);
        lanes_.high[j] = load_row(batch_.high + at, count_);
      }
      for (int r = 0; r < kKept; ++r)
        lanes_.kept[j][r] =
            batch_.kept[r] ? load_row(batch_.kept[r], batch_.dtype, at, count_) : FitPack{};
    }
    const FitPack so_far = FitPack::all(static_cast<double>(first));
    if (batch_.previous) lanes_.previous = load_row(batch_.previous + fit_, count_);
    lanes_.epochs = batch_.epochs ? load_row(batch_.epochs + fit_, count_) : so_far;
    lanes_.active = if_less(lanes_.epochs - so_far, 0.0, FitPack{}, lanes_.active);
  }

  Recorder recorder() const { return {batch_.recorded + fit_, batch_.fits, count_}; }

  void leave_run() {
    const Schedule& schedule = batch_.schedule;
    FitPack unbounded = lanes_.loss - lanes_.loss;  // 0, or nan
    for (int j = 0; j < (K ? K : batch_.n_terms); ++j) unbounded += lanes_.p[j] - lanes_.p[j];
    // 0 converged, 1 step limit, 2 rank deficient, 4 diverged
    FitPack status = if_zero(unbounded, lanes_.active, FitPack::all(4.0));
    status = if_zero(rank_, FitPack::all(2.0), status);
    lanes_.loss += if_zero(rank_, FitPack::all(NAN), FitPack{});  // of no sample
    store_row(status, reinterpret_cast<int32_t*>(batch_.status) + fit_, count_);
    if (batch_.epochs) store_row(lanes_.epochs, batch_.epochs + fit_, count_);
    if (batch_.previous) store_row(lanes_.previous, batch_.previous + fit_, count_);
    for (int j = 0; j < (K ? K : batch_.n_terms); ++j) {
      const int64_t at = j * batch_.fits + fit_;
      if (schedule.epochs > 0) store_row(lanes_.grad[j], batch_.grad, batch_.dtype, at, count_);
      for (int r = 0; r < kKept; ++r)
        if (batch_.kept[r]) store_row(lanes_.kept[j][r], batch_.kept[r], batch_.dtype, at, count_);
    }
    leave();
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

void run_tile(const BatchPlan& plan, int64_t begin, int64_t end, Workspace& work) {
  const Batch& batch = plan.batch;
  const int64_t n = batch.n;
  const int count = static_cast<int>(end - begin), packs = (count + kFitLanes - 1) / kFitLanes;
  const auto sized = [&](std::vector<FitPack>& v, int64_t size) {
    if (static_cast<int64_t>(v.size()) < size) v.resize(static_cast<size_t>(size));
    return v.data();
  };
  FitPack* const y = sized(work.y, packs * n);
  const bool by_sums = batch.x.dtype == Dtype::Float32 && batch.y.dtype == Dtype::Float32 &&
                       (batch.solve || batch.engine != Engine::Stream);
  // Whether sums are taken as rows are read.
  const bool unread = by_sums && batch.y.fit == 1 && !(batch.w.at || batch.omit) &&
                      count == packs * kFitLanes &&
                      (plan.design || (batch.x.fit == 1 && usual(batch.n_terms)));
  if (!unread) gather(batch.y, n, begin, count, y);
  bool whole = plan.design != nullptr;
  if (whole && plan.design->root)
    for (int64_t i = 0; i < packs * n; ++i) {
      const double root = plan.design->root[i % n];
      y[i] = root == 0.0 ? FitPack{} : y[i] * root;
    }
  if (whole && batch.omit) {  // a gap in some fit
    FitPack nothing{};
    for (int64_t i = 0; i < packs * n; ++i) nothing += y[i] - y[i];
    whole = nothing.all_finite();
  }
  FitPack *x = nullptr, *w = nullptr;
  if (!whole) {
    if (plan.design && plan.design->root) gather(batch.y, n, begin, count, y);
    x = sized(work.x, packs * n);
    if (!unread) gather(batch.x, n, begin, count, x);
    sized(work.now, n), sized(work.before, n), sized(work.factor, batch.n_terms * batch.n_terms);
    if (!batch.solve && batch.engine == Engine::Stream) sized(work.t, n), sized(work.nothing, n);
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
    FitPack *const of_x = whole ? nullptr : x + p * n, *const of_y = y + p * n;
    const FitPack* const of_w = w ? w + p * n : nullptr;
    with_usual_terms(batch.n_terms, [&](auto k) {
      FitsAbreast<k()> fits(plan, fit, lanes);
      if (whole)
        return fits.shared(of_y, unread ? static_cast<const float*>(batch.y.at) + fit : nullptr);
      if constexpr (k() > 0)
        if (by_sums && fits.own(unread ? gather_and_add<k()>(batch, fit, of_x, of_y)
                                       : add_all<k()>(n, of_x, of_y, of_w),
                                of_x, of_y, of_w, work))
          return;
      fits.own(w ? begin_fit<true>(n, of_x, of_w, of_y) : begin_fit<false>(n, of_x, of_w, of_y),
               of_x, of_y, of_w, work);
    });
  }
}

}  // namespace

void batch_fits(const BatchPlan& plan, int64_t begin, int64_t end) {
  Workspace work;
  for (int64_t at = begin; at < end; at += kTile)
    run_tile(plan, at, std::min(end, at + kTile), work);
}

}  // namespace PF_ISA
}  // namespace polyfuse
