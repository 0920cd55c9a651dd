// Optimizers: the update of one parameter p with gradient g, and of what the rule keeps of it from
// one step to the next; for float, double and packs of doubles. Operation by operation as in
// torch.optim, in the precision of T; numbers that torch computes in Python are in float64.
// advance(): rows that torch keeps once per tensor, such as the count of steps, and the rates of
// the step, which follow from them; update(): the rest.
#pragma once

#include <cmath>

#include "macros.h"
#include "problem.h"
#include "select.h"

namespace polyfuse {
inline namespace PF_ISA {

using std::abs;
using std::sqrt;  // in the precision of its argument

constexpr int kRates = 3;  // of a step, at most

template <class T>
PF_HD T lerp(T from, T to, double weight) {
  return weight < 0.5 ? from + like(from, weight) * (to - from)
                      : to - (to - from) * like(from, 1.0 - weight);
}

// The larger one; b where either is nan.
template <class T>
PF_HD T larger(T a, T b) {
  return if_less(b - a, 0.0, a, b);
}

// d = +-g + weight_decay p
template <class T>
PF_HD T descent_direction(T p, T g, double maximize, double weight_decay) {
  const T d = maximize != 0.0 ? -g : g;
  return weight_decay != 0.0 ? d + like(p, weight_decay) * p : d;
}

// torch keeps these numbers in tensors of the default dtype.
PF_HD double stored(double value, double single) {
  return single != 0.0 ? static_cast<double>(static_cast<float>(value)) : value;
}

// b = momentum b + (1 - dampening) d, at first b = d;
// p = p - lr (d | b | d + momentum b) for (momentum = 0 | momentum | nesterov).
// For a filled buffer it is linear in (p, g, b), which is what the closed form rests on.
struct Sgd {
  enum Option { kLr, kMomentum, kDampening, kWeightDecay, kNesterov, kMaximize };
  enum Kept { kBuffer, kFilled };
  enum Rate { kFilling };
  template <class T>
  static PF_HD void advance(const double* o, T* kept, double* rate) {
    rate[kFilling] = kept[kFilled] == T(0) ? 1.0 : 0.0;
    if (o[kMomentum] != 0.0) kept[kFilled] = T(1);
  }
  template <class T>
  static PF_HD void update(const double* o, const double* rate, T& p, T g, T* kept) {
    T d = descent_direction(p, g, o[kMaximize], o[kWeightDecay]);
    if (o[kMomentum] != 0.0) {
      T& buffer = kept[kBuffer];
      const T momentum = like(p, o[kMomentum]);
      buffer = rate[kFilling] != 0.0 ? d : momentum * buffer + like(p, 1.0 - o[kDampening]) * d;
      d = o[kNesterov] != 0.0 ? d + momentum * buffer : buffer;
    }
    p -= like(p, o[kLr]) * d;
  }
};

PF_HD bool fills_momentum(const UpdateRule& rule) {
  return rule.method == Method::Sgd && rule.option[Sgd::kMomentum] != 0.0;
}

// Kingma and Ba, Adam (2014), and AdamW by Loshchilov and Hutter (2017): decoupled decay.
struct Adam {
  enum Option { kLr, kBeta1, kBeta2, kEps, kWeightDecay, kAmsgrad, kMaximize, kDecoupled };
  enum Kept { kStep, kMean, kSquare, kLargest };
  enum Rate { kSize, kRoot };
  template <class T>
  static PF_HD void advance(const double* o, T* kept, double* rate) {
    const double step = static_cast<double>(kept[kStep] += T(1));
    rate[kSize] = o[kLr] / (1.0 - pow(o[kBeta1], step));
    rate[kRoot] = sqrt(1.0 - pow(o[kBeta2], step));
  }
  template <class T>
  static PF_HD void update(const double* o, const double* rate, T& p, T g, T* kept) {
    const bool decoupled = o[kDecoupled] != 0.0;
    if (decoupled && o[kWeightDecay] != 0.0) p *= like(p, 1.0 - o[kLr] * o[kWeightDecay]);
    const T d = descent_direction(p, g, o[kMaximize], decoupled ? 0.0 : o[kWeightDecay]);
    kept[kMean] = lerp(kept[kMean], d, 1.0 - o[kBeta1]);
    kept[kSquare] = kept[kSquare] * like(p, o[kBeta2]) + like(p, 1.0 - o[kBeta2]) * d * d;
    T square = kept[kSquare];
    if (o[kAmsgrad] != 0.0) square = kept[kLargest] = larger(kept[kLargest], square);
    const T size = like(p, rate[kSize]), root = like(p, rate[kRoot]);
    p -= size * kept[kMean] / (sqrt(square) / root + like(p, o[kEps]));
  }
};

// Polyak and Juditsky, Acceleration of stochastic approximation by averaging (1992).
struct Asgd {
  enum Option { kLr, kLambd, kAlpha, kT0, kWeightDecay, kMaximize, kSingle };
  enum Kept { kStep, kEta, kMu, kAverage };
  enum Rate { kEtaNow, kMuNow };
  template <class T>
  static PF_HD void advance(const double* o, T* kept, double* rate) {
    const double step = static_cast<double>(kept[kStep] += T(1));
    rate[kEtaNow] = static_cast<double>(kept[kEta]);
    rate[kMuNow] = static_cast<double>(kept[kMu]);
    const double next = o[kLr] / pow(1.0 + o[kLambd] * o[kLr] * step, o[kAlpha]);
    kept[kEta] = T(stored(next, o[kSingle]));
    kept[kMu] = T(stored(1.0 / fmax(1.0, step - o[kT0]), o[kSingle]));
  }
  template <class T>
  static PF_HD void update(const double* o, const double* rate, T& p, T g, T* kept) {
    const T d = descent_direction(p, g, o[kMaximize], o[kWeightDecay]);
    p *= like(p, 1.0 - o[kLambd] * rate[kEtaNow]);
    p -= like(p, rate[kEtaNow]) * d;
    if (rate[kMuNow] != 1.0)
      kept[kAverage] += (p - kept[kAverage]) * like(p, rate[kMuNow]);
    else
      kept[kAverage] = p;
  }
};

// Riedmiller and Braun, A direct adaptive method for faster backpropagation learning (1993).
struct Rprop {
  enum Option { kLr, kEtaMinus, kEtaPlus, kStepMin, kStepMax, kMaximize };
  enum Kept { kStep, kBefore, kSize };
  template <class T>
  static PF_HD void advance(const double*, T* kept, double*) {
    kept[kStep] += T(1);
  }
  template <class T>
  static PF_HD void update(const double* o, const double*, T& p, T g, T* kept) {
    T d = o[kMaximize] != 0.0 ? -g : g;
    const T sign = d * kept[kBefore];
    T size = kept[kSize];
    size = if_less(-sign, 0.0, size * like(p, o[kEtaPlus]), size);
    size = if_less(sign, 0.0, size * like(p, o[kEtaMinus]), size);
    d = if_less(sign, 0.0, like(p, 0.0), d);
    size = if_less(-size, -o[kStepMax], like(p, o[kStepMax]), size);
    kept[kSize] = size = if_less(size, o[kStepMin], like(p, o[kStepMin]), size);
    p -= if_less(-d, 0.0, size, if_less(d, 0.0, -size, d));  // nan stays
    kept[kBefore] = d;
  }
};

// Tieleman and Hinton, Lecture 6.5 (2012); centred as in Graves (2013).
struct RmsProp {
  enum Option { kLr, kAlpha, kEps, kWeightDecay, kMomentum, kCentered, kMaximize };
  enum Kept { kStep, kSquare, kBuffer, kMean };
  template <class T>
  static PF_HD void advance(const double*, T* kept, double*) {
    kept[kStep] += T(1);
  }
  template <class T>
  static PF_HD void update(const double* o, const double*, T& p, T g, T* kept) {
    const T d = descent_direction(p, g, o[kMaximize], o[kWeightDecay]);
    kept[kSquare] = kept[kSquare] * like(p, o[kAlpha]) + like(p, 1.0 - o[kAlpha]) * d * d;
    T square = kept[kSquare];
    if (o[kCentered] != 0.0) {
      kept[kMean] = lerp(kept[kMean], d, 1.0 - o[kAlpha]);
      square -= kept[kMean] * kept[kMean];
    }
    const T root = sqrt(square) + like(p, o[kEps]);
    if (o[kMomentum] > 0.0) {
      kept[kBuffer] = kept[kBuffer] * like(p, o[kMomentum]) + d / root;
      p -= like(p, o[kLr]) * kept[kBuffer];
    } else {
      p -= like(p, o[kLr]) * d / root;
    }
  }
};

// Duchi, Hazan and Singer, Adaptive subgradient methods (2011).
struct Adagrad {
  enum Option { kLr, kLrDecay, kWeightDecay, kEps, kMaximize };
  enum Kept { kStep, kSum };
  enum Rate { kSize };
  template <class T>
  static PF_HD void advance(const double* o, T* kept, double* rate) {
    const double step = static_cast<double>(kept[kStep] += T(1));
    rate[kSize] = o[kLr] / (1.0 + (step - 1.0) * o[kLrDecay]);
  }
  template <class T>
  static PF_HD void update(const double* o, const double* rate, T& p, T g, T* kept) {
    const T d = descent_direction(p, g, o[kMaximize], o[kWeightDecay]);
    kept[kSum] += d * d;
    p -= like(p, rate[kSize]) * d / (sqrt(kept[kSum]) + like(p, o[kEps]));
  }
};

// Zeiler, ADADELTA (2012).
struct Adadelta {
  enum Option { kLr, kRho, kEps, kWeightDecay, kMaximize };
  enum Kept { kStep, kSquare, kMoved };
  template <class T>
  static PF_HD void advance(const double*, T* kept, double*) {
    kept[kStep] += T(1);
  }
  template <class T>
  static PF_HD void update(const double* o, const double*, T& p, T g, T* kept) {
    const T d = descent_direction(p, g, o[kMaximize], o[kWeightDecay]);
    const T rho = like(p, o[kRho]), stay = like(p, 1.0 - o[kRho]), eps = like(p, o[kEps]);
    kept[kSquare] = kept[kSquare] * rho + stay * d * d;
    const T move = sqrt(kept[kMoved] + eps) / sqrt(kept[kSquare] + eps) * d;
    kept[kMoved] = kept[kMoved] * rho + stay * move * move;
    p -= like(p, o[kLr]) * move;
  }
};

// Kingma and Ba, Adam (2014), section 7.1.
struct Adamax {
  enum Option { kLr, kBeta1, kBeta2, kEps, kWeightDecay, kMaximize };
  enum Kept { kStep, kMean, kLargest };
  enum Rate { kSize };
  template <class T>
  static PF_HD void advance(const double* o, T* kept, double* rate) {
    const double step = static_cast<double>(kept[kStep] += T(1));
    rate[kSize] = o[kLr] / (1.0 - pow(o[kBeta1], step));
  }
  template <class T>
  static PF_HD void update(const double* o, const double* rate, T& p, T g, T* kept) {
    const T d = descent_direction(p, g, o[kMaximize], o[kWeightDecay]);
    kept[kMean] = lerp(kept[kMean], d, 1.0 - o[kBeta1]);
    const T faded = kept[kLargest] * like(p, o[kBeta2]), now = abs(d) + like(p, o[kEps]);
    kept[kLargest] = larger(faded, now);
    p -= like(p, rate[kSize]) * kept[kMean] / kept[kLargest];
  }
};

// Dozat, Incorporating Nesterov momentum into Adam (2016).
struct NAdam {
  enum Option {
    kLr,
    kBeta1,
    kBeta2,
    kEps,
    kWeightDecay,
    kMomentumDecay,
    kMaximize,
    kDecoupled,
    kSingle
  };
  enum Kept { kStep, kMuProduct, kMean, kSquare };
  enum Rate { kOfGradient, kOfMean, kCorrection };
  template <class T>
  static PF_HD void advance(const double* o, T* kept, double* rate) {
    const double step = static_cast<double>(kept[kStep] += T(1));
    const auto mu_at = [&](double t) {
      return o[kBeta1] * (1.0 - 0.5 * pow(0.96, t * o[kMomentumDecay]));
    };
    const double mu = mu_at(step), mu_next = mu_at(step + 1.0);
    const double product = static_cast<double>(kept[kMuProduct]);
    // the tensor's own arithmetic
    kept[kMuProduct] = o[kSingle] != 0.0 ? T(static_cast<float>(product) * static_cast<float>(mu))
                                         : T(product * mu);
    const double now = static_cast<double>(kept[kMuProduct]);
    rate[kOfGradient] = o[kLr] * (1.0 - mu) / (1.0 - now);
    rate[kOfMean] = o[kLr] * mu_next / (1.0 - now * mu_next);
    rate[kCorrection] = 1.0 - pow(o[kBeta2], step);
  }
  template <class T>
  static PF_HD void update(const double* o, const double* rate, T& p, T g, T* kept) {
    const bool decoupled = o[kDecoupled] != 0.0;
    if (decoupled && o[kWeightDecay] != 0.0) p *= like(p, 1.0 - o[kLr] * o[kWeightDecay]);
    const T d = descent_direction(p, g, o[kMaximize], decoupled ? 0.0 : o[kWeightDecay]);
    kept[kMean] = lerp(kept[kMean], d, 1.0 - o[kBeta1]);
    kept[kSquare] = kept[kSquare] * like(p, o[kBeta2]) + like(p, 1.0 - o[kBeta2]) * d * d;
    const T root = sqrt(kept[kSquare] / like(p, rate[kCorrection])) + like(p, o[kEps]);
    p -= like(p, rate[kOfGradient]) * d / root;
    p -= like(p, rate[kOfMean]) * kept[kMean] / root;
  }
};

// Liu and others, On the variance of the adaptive learning rate and beyond (2019).
struct RAdam {
  enum Option { kLr, kBeta1, kBeta2, kEps, kWeightDecay, kMaximize, kDecoupled };
  enum Kept { kStep, kMean, kSquare };
  enum Rate { kCorrection, kRoot, kRectified };  // the last 0 while it is not
  template <class T>
  static PF_HD void advance(const double* o, T* kept, double* rate) {
    const double step = static_cast<double>(kept[kStep] += T(1));
    const double fade = pow(o[kBeta2], step), correction = 1.0 - fade;
    const double most = 2.0 / (1.0 - o[kBeta2]) - 1.0;
    const double rho = most - 2.0 * step * fade / correction;
    rate[kCorrection] = 1.0 - pow(o[kBeta1], step);
    rate[kRoot] = sqrt(correction);
    rate[kRectified] =
        rho > 5.0 ? sqrt((rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho))
                  : 0.0;
  }
  template <class T>
  static PF_HD void update(const double* o, const double* rate, T& p, T g, T* kept) {
    const bool decoupled = o[kDecoupled] != 0.0;
    if (decoupled && o[kWeightDecay] != 0.0) p *= like(p, 1.0 - o[kLr] * o[kWeightDecay]);
    const T d = descent_direction(p, g, o[kMaximize], decoupled ? 0.0 : o[kWeightDecay]);
    kept[kMean] = lerp(kept[kMean], d, 1.0 - o[kBeta1]);
    kept[kSquare] = kept[kSquare] * like(p, o[kBeta2]) + like(p, 1.0 - o[kBeta2]) * d * d;
    T move = kept[kMean] / like(p, rate[kCorrection]) * like(p, o[kLr]);
    if (rate[kRectified] != 0.0)
      move = move * (like(p, rate[kRoot]) / (sqrt(kept[kSquare]) + like(p, o[kEps]))) *
             like(p, rate[kRectified]);
    p -= move;
  }
};

// f(Sgd{}) and so on.
template <class F>
PF_HD void with_rule(Method method, F&& f) {
  switch (method) {
    case Method::None: return;
    case Method::Sgd: return f(Sgd{});
    case Method::Adam: return f(Adam{});
    case Method::Asgd: return f(Asgd{});
    case Method::Rprop: return f(Rprop{});
    case Method::RmsProp: return f(RmsProp{});
    case Method::Adagrad: return f(Adagrad{});
    case Method::Adadelta: return f(Adadelta{});
    case Method::Adamax: return f(Adamax{});
    case Method::NAdam: return f(NAdam{});
    case Method::RAdam: return f(RAdam{});
  }
}

// Onto [low, high]; nan stays.
template <class T>
PF_HD T projected(T p, T low, T high) {
  return if_less(p - low, 0.0, low, if_less(high - p, 0.0, high, p));
}

template <class T>
PF_HD void update(const UpdateRule& rule, T& p, T g, T* kept /* [kKept] */) {
  with_rule(rule.method, [&](auto of) {
    double rate[kRates];
    of.advance(rule.option, kept, rate);
    of.update(rule.option, rate, p, g, kept);
  });
}

}  // namespace PF_ISA
}  // namespace polyfuse
