// The least-squares optimum of every fit of a batch, in one read of the data.
#include "fits.cuh"
#include "launch.cuh"
#include "launch.h"

namespace polyfuse {
namespace {

template <class T, int M>
PF_DEVICE void leave(const Fits& fits, int64_t fit, int terms, const Frame& frame, double rank,
                     const double* factor, double (&along)[M], double rest) {
  double degree = M;
  if (fits.degree) {
    const int chosen =
        choose_degree<M>(fits.degree_by, terms, frame.count, static_cast<int>(rank), along, rest);
    fits.degree[fit] = chosen;
    degree = chosen;
  }
  const double there = rank == 0.0 ? NAN : rest - rest;  // nan where there is no optimum
  double coef[M];
  back_substitute(terms, factor, along, coef);
  PF_UNROLL
  for (int j = 0; j < terms; ++j)
    static_cast<T*>(fits.params)[j * fits.fits + fit] = static_cast<T>(coef[j] + there);
  fits.loss[fit] = rest / frame.weight + there;
  fits.determination[fit] = determination(terms, along, rest) + there;
  if (fits.covariance) {
    const double full = rank < terms ? NAN : there;
    covariance<M>(terms, factor, degree, [&](int i, int j, double value) {
      fits.covariance[(i * terms + j) * fits.fits + fit] = value + full;
    });
  }
  fits.counted[fit] = static_cast<int32_t>(frame.count);
  fits.weight_sum[fit] = frame.weight;
  fits.rank[fit] = static_cast<int32_t>(rank);
  fits.status[fit] = !finite(rest)  ? FitStatus::NonFinite
                     : rank < terms ? FitStatus::RankDeficient
                                    : FitStatus::Converged;
}

template <class T, int M>
__global__ void __launch_bounds__(kFitThreads, fit_blocks(M))
    solve_each(const __grid_constant__ Fits fits) {
  const int terms = M <= kUnrolledTerms ? M : fits.n_terms;
  for_each_fit<T>(fits, dynamic_shared(), [&](int64_t fit, const Points<T>& points) {
    Fitted<M> fitted;
    fitted.of(points, fits, terms, Single{});
    leave<T>(fits, fit, terms, fitted.frame, fitted.q.rank, fitted.factor, fitted.q.along,
             fitted.q.rest);
  });
}

// Of fits that share x and weights.
template <class T, int M>
__global__ void __launch_bounds__(kFitThreads, fit_blocks(M))
    solve_alike(const __grid_constant__ Fits fits) {
  __shared__ double scratch[kTogether];
  const int terms = M <= kUnrolledTerms ? M : fits.n_terms;
  double* const q = reinterpret_cast<double*>(dynamic_shared());  // [n, K]
  const Column<T> x{static_cast<const T*>(fits.x.at), fits.x.sample};
  const Column<T> w{static_cast<const T*>(fits.w.at), fits.w.sample};
  Fitted<M> design;
  design.of(Points<T>{x, x, w, fits.n, false}, fits, terms, Together{scratch});
  for (int64_t i = threadIdx.x; i < fits.n; i += blockDim.x)
    orthonormal(terms, design.q, design.frame(x[i]),
                [&](int k, double value) { q[i * terms + k] = value; });
  for_each_fit<T>(
      fits, reinterpret_cast<char*>(q + fits.n * terms), [&](int64_t fit, const Points<T>& points) {
        double along[M], rest;
        project(points, q, terms, along, rest);
        leave<T>(fits, fit, terms, design.frame, design.q.rank, design.factor, along, rest);
      });
}

}  // namespace

void launch_solve_fits(const Fits& fits, void* stream) {
  with_dtype(fits.dtype, [&](auto value) {
    with_terms(fits.n_terms, [&](auto m) {
      launch(fits.alike ? solve_alike<decltype(value), m()> : solve_each<decltype(value), m()>,
             fits, stream);
    });
  });
}

}  // namespace polyfuse
