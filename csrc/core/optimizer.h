// Optimizers: the update of one parameter p with gradient g, and of what the rule keeps of it from
// one step to the next. Operation by operation as in torch.optim, in the precision of T; numbers
// that torch computes in Python are in float64. Rows that torch keeps once per tensor, such as the
// count of steps, stand here with every parameter.
#pragma once

#include <cmath>

#include "macros.h"
#include "problem.h"

namespace polyfuse {
inline namespace PF_ISA {

using std::sqrt;  // in the precision of its argument

template <class T>
PF_HD T lerp(T from, T to, double weight) {
  return weight < 0.5 ? from + T(weight) * (to - from) : to - (to - from) * T(1.0 - weight);
}

// d = +-g + weight_decay p
template <class T>
PF_HD T descent_direction(T p, T g, double maximize, double weight_decay) {
  const T d = maximize != 0.0 ? -g : g;
  return weight_decay != 0.0 ? d + T(weight_decay) * p : d;
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
  template <class T>
  static PF_HD void update(const double* o, T& p, T g, T* kept) {
    T d = descent_direction(p, g, o[kMaximize], o[kWeightDecay]);
    if (o[kMomentum] != 0.0) {
      T& buffer = kept[kBuffer];
      const T momentum = T(o[kMomentum]);
      buffer = kept[kFilled] != T(0) ? momentum * buffer + T(1.0 - o[kDampening]) * d : d;
      kept[kFilled] = T(1);
      d = o[kNesterov] != 0.0 ? d + momentum * buffer : buffer;
    }
    p -= T(o[kLr]) * d;
  }
};

PF_HD bool fills_momentum(const UpdateRule& rule) {
  return rule.method == Method::Sgd && rule.option[Sgd::kMomentum] != 0.0;
}

// Kingma and Ba, Adam (2014), and AdamW by Loshchilov and Hutter (2017): decoupled decay.
struct Adam {
  enum Option { kLr, kBeta1, kBeta2, kEps, kWeightDecay, kAmsgrad, kMaximize, kDecoupled };
  enum Kept { kStep, kMean, kSquare, kLargest };
  template <class T>
  static PF_HD void update(const double* o, T& p, T g, T* kept) {
    const bool decoupled = o[kDecoupled] != 0.0;
    const double step = static_cast<double>(kept[kStep] += T(1));
    if (decoupled && o[kWeightDecay] != 0.0) p *= T(1.0 - o[kLr] * o[kWeightDecay]);
    const T d = descent_direction(p, g, o[kMaximize], decoupled ? 0.0 : o[kWeightDecay]);
    kept[kMean] = lerp(kept[kMean], d, 1.0 - o[kBeta1]);
    kept[kSquare] = kept[kSquare] * T(o[kBeta2]) + T(1.0 - o[kBeta2]) * d * d;
    T square = kept[kSquare];
    if (o[kAmsgrad] != 0.0) {
      if (!(kept[kLargest] >= square)) kept[kLargest] = square;
      square = kept[kLargest];
    }
    const double size = o[kLr] / (1.0 - pow(o[kBeta1], step));
    const T root = T(sqrt(1.0 - pow(o[kBeta2], step)));
    p -= T(size) * kept[kMean] / (sqrt(square) / root + T(o[kEps]));
  }
};

// Polyak and Juditsky, Acceleration of stochastic approximation by averaging (1992).
struct Asgd {
  enum Option { kLr, kLambd, kAlpha, kT0, kWeightDecay, kMaximize, kSingle };
  enum Kept { kStep, kEta, kMu, kAverage };
  template <class T>
  static PF_HD void update(const double* o, T& p, T g, T* kept) {
    const T d = descent_direction(p, g, o[kMaximize], o[kWeightDecay]);
    const double step = static_cast<double>(kept[kStep] += T(1));
    const double eta = static_cast<double>(kept[kEta]);
    p *= T(1.0 - o[kLambd] * eta);
    p -= T(eta) * d;
    if (kept[kMu] != T(1))
      kept[kAverage] += (p - kept[kAverage]) * kept[kMu];
    else
      kept[kAverage] = p;
    const double next = o[kLr] / pow(1.0 + o[kLambd] * o[kLr] * step, o[kAlpha]);
    kept[kEta] = T(stored(next, o[kSingle]));
    kept[kMu] = T(stored(1.0 / fmax(1.0, step - o[kT0]), o[kSingle]));
  }
};

// Riedmiller and Braun, A direct adaptive method for faster backpropagation learning (1993).
struct Rprop {
  enum Option { kLr, kEtaMinus, kEtaPlus, kStepMin, kStepMax, kMaximize };
  enum Kept { kStep, kBefore, kSize };
  template <class T>
  static PF_HD void update(const double* o, T& p, T g, T* kept) {
    T d = o[kMaximize] != 0.0 ? -g : g;
    kept[kStep] += T(1);
    const T sign = d * kept[kBefore];
    const T low = T(o[kStepMin]), high = T(o[kStepMax]);
    T size = kept[kSize];
    if (sign > T(0)) size *= T(o[kEtaPlus]);
    if (sign < T(0)) size *= T(o[kEtaMinus]), d = T(0);
    kept[kSize] = size < low ? low : size > high ? high : size;
    if (d > T(0)) p -= kept[kSize];
    if (d < T(0)) p += kept[kSize];
    kept[kBefore] = d;
    if (d != d) p = d;
  }
};

// Tieleman and Hinton, Lecture 6.5 (2012); centred as in Graves (2013).
struct RmsProp {
  enum Option { kLr, kAlpha, kEps, kWeightDecay, kMomentum, kCentered, kMaximize };
  enum Kept { kStep, kSquare, kBuffer, kMean };
  template <class T>
  static PF_HD void update(const double* o, T& p, T g, T* kept) {
    kept[kStep] += T(1);
    const T d = descent_direction(p, g, o[kMaximize], o[kWeightDecay]);
    kept[kSquare] = kept[kSquare] * T(o[kAlpha]) + T(1.0 - o[kAlpha]) * d * d;
    T square = kept[kSquare];
    if (o[kCentered] != 0.0) {
      kept[kMean] = lerp(kept[kMean], d, 1.0 - o[kAlpha]);
      square -= kept[kMean] * kept[kMean];
    }
    const T root = sqrt(square) + T(o[kEps]);
    if (o[kMomentum] > 0.0) {
      kept[kBuffer] = kept[kBuffer] * T(o[kMomentum]) + d / root;
      p -= T(o[kLr]) * kept[kBuffer];
    } else {
      p -= T(o[kLr]) * d / root;
    }
  }
};

// Duchi, Hazan and Singer, Adaptive subgradient methods (2011).
struct Adagrad {
  enum Option { kLr, kLrDecay, kWeightDecay, kEps, kMaximize };
  enum Kept { kStep, kSum };
  template <class T>
  static PF_HD void update(const double* o, T& p, T g, T* kept) {
    const double step = static_cast<double>(kept[kStep] += T(1));
    const T d = descent_direction(p, g, o[kMaximize], o[kWeightDecay]);
    kept[kSum] += d * d;
    const T size = T(o[kLr] / (1.0 + (step - 1.0) * o[kLrDecay]));
    p -= size * d / (sqrt(kept[kSum]) + T(o[kEps]));
  }
};

// Zeiler, ADADELTA (2012).
struct Adadelta {
  enum Option { kLr, kRho, kEps, kWeightDecay, kMaximize };
  enum Kept { kStep, kSquare, kMoved };
  template <class T>
  static PF_HD void update(const double* o, T& p, T g, T* kept) {
    kept[kStep] += T(1);
    const T d = descent_direction(p, g, o[kMaximize], o[kWeightDecay]);
    const T rho = T(o[kRho]), stay = T(1.0 - o[kRho]), eps = T(o[kEps]);
    kept[kSquare] = kept[kSquare] * rho + stay * d * d;
    const T move = sqrt(kept[kMoved] + eps) / sqrt(kept[kSquare] + eps) * d;
    kept[kMoved] = kept[kMoved] * rho + stay * move * move;
    p -= T(o[kLr]) * move;
  }
};

// Kingma and Ba, Adam (2014), section 7.1.
struct Adamax {
  enum Option { kLr, kBeta1, kBeta2, kEps, kWeightDecay, kMaximize };
  enum Kept { kStep, kMean, kLargest };
  template <class T>
  static PF_HD void update(const double* o, T& p, T g, T* kept) {
    const double step = static_cast<double>(kept[kStep] += T(1));
    const T d = descent_direction(p, g, o[kMaximize], o[kWeightDecay]);
    kept[kMean] = lerp(kept[kMean], d, 1.0 - o[kBeta1]);
    const T faded = kept[kLargest] * T(o[kBeta2]), now = (d < T(0) ? -d : d) + T(o[kEps]);
    kept[kLargest] = now >= faded || now != now ? now : faded;
    p -= T(o[kLr] / (1.0 - pow(o[kBeta1], step))) * kept[kMean] / kept[kLargest];
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
  template <class T>
  static PF_HD void update(const double* o, T& p, T g, T* kept) {
    const bool decoupled = o[kDecoupled] != 0.0;
    const double lr = o[kLr];
    const double step = static_cast<double>(kept[kStep] += T(1));
    if (decoupled && o[kWeightDecay] != 0.0) p *= T(1.0 - lr * o[kWeightDecay]);
    const T d = descent_direction(p, g, o[kMaximize], decoupled ? 0.0 : o[kWeightDecay]);
    const auto mu_at = [&](double t) {
      return o[kBeta1] * (1.0 - 0.5 * pow(0.96, t * o[kMomentumDecay]));
    };
    const double mu = mu_at(step), mu_next = mu_at(step + 1.0);
    const double product = static_cast<double>(kept[kMuProduct]);
    // the tensor's own arithmetic
    kept[kMuProduct] = o[kSingle] != 0.0 ? T(static_cast<float>(product) * static_cast<float>(mu))
                                         : T(product * mu);
    const double now = static_cast<double>(kept[kMuProduct]);
    kept[kMean] = lerp(kept[kMean], d, 1.0 - o[kBeta1]);
    kept[kSquare] = kept[kSquare] * T(o[kBeta2]) + T(1.0 - o[kBeta2]) * d * d;
    const T root = sqrt(kept[kSquare] / T(1.0 - pow(o[kBeta2], step))) + T(o[kEps]);
    p -= T(lr * (1.0 - mu) / (1.0 - now)) * d / root;
    p -= T(lr * mu_next / (1.0 - now * mu_next)) * kept[kMean] / root;
  }
};

// Liu and others, On the variance of the adaptive learning rate and beyond (2019).
struct RAdam {
  enum Option { kLr, kBeta1, kBeta2, kEps, kWeightDecay, kMaximize, kDecoupled };
  enum Kept { kStep, kMean, kSquare };
  template <class T>
  static PF_HD void update(const double* o, T& p, T g, T* kept) {
    const bool decoupled = o[kDecoupled] != 0.0;
    const double step = static_cast<double>(kept[kStep] += T(1));
    if (decoupled && o[kWeightDecay] != 0.0) p *= T(1.0 - o[kLr] * o[kWeightDecay]);
    const T d = descent_direction(p, g, o[kMaximize], decoupled ? 0.0 : o[kWeightDecay]);
    kept[kMean] = lerp(kept[kMean], d, 1.0 - o[kBeta1]);
    kept[kSquare] = kept[kSquare] * T(o[kBeta2]) + T(1.0 - o[kBeta2]) * d * d;
    const double fade = pow(o[kBeta2], step), correction = 1.0 - fade;
    const double most = 2.0 / (1.0 - o[kBeta2]) - 1.0;
    const double rho = most - 2.0 * step * fade / correction;
    T move = kept[kMean] / T(1.0 - pow(o[kBeta1], step)) * T(o[kLr]);
    if (rho > 5.0) {
      const double rectified =
          sqrt((rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho));
      move = move * (T(sqrt(correction)) / (sqrt(kept[kSquare]) + T(o[kEps]))) * T(rectified);
    }
    p -= move;
  }
};

template <class T>
PF_HD void update(const UpdateRule& rule, T& p, T g, T* kept /* [kKept] */) {
  const double* const o = rule.option;
  switch (rule.method) {
    case Method::None: return;
    case Method::Sgd: return Sgd::update(o, p, g, kept);
    case Method::Adam: return Adam::update(o, p, g, kept);
    case Method::Asgd: return Asgd::update(o, p, g, kept);
    case Method::Rprop: return Rprop::update(o, p, g, kept);
    case Method::RmsProp: return RmsProp::update(o, p, g, kept);
    case Method::Adagrad: return Adagrad::update(o, p, g, kept);
    case Method::Adadelta: return Adadelta::update(o, p, g, kept);
    case Method::Adamax: return Adamax::update(o, p, g, kept);
    case Method::NAdam: return NAdam::update(o, p, g, kept);
    case Method::RAdam: return RAdam::update(o, p, g, kept);
  }
}

}  // namespace PF_ISA
}  // namespace polyfuse
