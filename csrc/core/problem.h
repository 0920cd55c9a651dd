// What a kernel is told: addresses, sizes, tags. Plain data, the same for every device.
#pragma once

#include <cstdint>

namespace polyfuse {

constexpr int kMaxTerms = 33;  // coefficients of one polynomial: degree 32

enum class Dtype : int32_t { Float32 = 0, Float64 = 1 };
enum class Engine : int32_t { Stream = 0, Moments = 1, ClosedForm = 2 };

enum class CriterionKind : int32_t {
  SquaredError = 0,
  AbsoluteError = 1,
  SmoothL1 = 2,
  Huber = 3,
  SoftMargin = 4,
  BCEWithLogits = 5,
  PoissonNLL = 6,
  KLDiv = 7,
  GaussianNLL = 8,
  CrossEntropy = 9,  // of several outputs, in cross_entropy.h
};

// A criterion and its options, named as torch's; each kind reads its own, all the weight.
struct Criterion {
  CriterionKind kind = CriterionKind::SquaredError;
  double weight = 1.0;      // of the loss
  double beta = 1.0;        // SmoothL1
  double delta = 1.0;       // Huber
  double pos_weight = 1.0;  // BCEWithLogits
  double eps = 0.0;         // PoissonNLL
  double variance = 1.0;    // GaussianNLL
  double log_variance = 0.0;
  bool log_input = true;    // PoissonNLL
  bool full = false;        // PoissonNLL, GaussianNLL
  bool log_target = false;  // KLDiv
  bool per_row = false;     // a mean is taken over the rows of the data, not over the samples
  const double* class_weight = nullptr;  // CrossEntropy, [C]; null: 1 each
  int64_t ignore = -100;                 // CrossEntropy: samples of this class are left out
  double smoothing = 0.0;
};

// N samples. The polynomial's variable is u = (x - shift) * scale.
struct Data {
  const void* x = nullptr;  // [N]
  const void* y = nullptr;  // [N]; null where a kernel reads x alone
  // [N] in dtype, none negative; null: 1 everywhere. A sample of weight 0 is left out, whatever it
  // holds.
  const void* w = nullptr;
  int64_t n = 0;
  int64_t x_stride = 1;  // in elements
  int64_t y_stride = 1;
  int64_t w_stride = 1;
  Dtype dtype = Dtype::Float64;
  bool omit = false;  // leave out samples with a nan or inf
  double shift = 0.0;
  double scale = 1.0;
  int64_t x_column = 1;  // of several variables, x [N, V]
};

// One product, factor * params[i] * params[j] * ...: the coefficient that it is added to, and where
// its parameters stand in the list of slots.
struct Span {
  int32_t coefficient, begin, end;
};

// Of one parameter; None: no optimizer holds it, and it stays as it is. The options of each method
// are named in optimizer.h.
enum class Method : int32_t {
  None,
  Sgd,
  Adam,
  Asgd,
  Rprop,
  RmsProp,
  Adagrad,
  Adadelta,
  Adamax,
  NAdam,
  RAdam
};
constexpr int kOptions = 9;
constexpr int kKept = 4;  // numbers that a method keeps of a parameter, at most
struct UpdateRule {
  Method method = Method::None;
  double option[kOptions] = {};
};

}  // namespace polyfuse
