// Double-double arithmetic: a number is the unevaluated sum hi + lo, about 32 digits. T is double,
// or a pack of them. Compile what uses it with -ffp-contract=off: a product contracted into a sum
// is not the number whose error is taken.
// Sources: Dekker, Numerische Mathematik 18 (1971); Joldes, Muller and Popescu, Tight and rigorous
// error bounds for basic building blocks of double-word arithmetic, ACM TOMS 44 (2017).
#pragma once

#include "macros.h"

namespace polyfuse {
inline namespace PF_ISA {

template <class T>
struct Twofold {
  T hi{}, lo{};
};
using Real = Twofold<double>;

PF_HD double product_error(double a, double b, double product) {
  return __builtin_fma(a, b, -product);
}

template <class T>
PF_HD Twofold<T> two_sum(T a, T b) {
  const T sum = a + b, of_b = sum - a;
  return {sum, (a - (sum - of_b)) + (b - of_b)};
}

// |a| >= |b|, or a is 0.
template <class T>
PF_HD Twofold<T> fast_two_sum(T a, T b) {
  const T sum = a + b;
  return {sum, b - (sum - a)};
}

template <class T>
PF_HD Twofold<T> two_product(T a, T b) {
  const T product = a * b;
  return {product, product_error(a, b, product)};
}

template <class T>
PF_HD Twofold<T> operator-(Twofold<T> a) {
  return {-a.hi, -a.lo};
}
template <class T>
PF_HD Twofold<T> operator+(Twofold<T> a, Twofold<T> b) {
  const Twofold<T> high = two_sum(a.hi, b.hi), low = two_sum(a.lo, b.lo);
  const Twofold<T> sum = fast_two_sum(high.hi, T(high.lo + low.hi));
  return fast_two_sum(sum.hi, T(low.lo + sum.lo));
}
template <class T>
PF_HD Twofold<T> operator+(Twofold<T> a, T b) {
  const Twofold<T> high = two_sum(a.hi, b);
  return fast_two_sum(high.hi, T(a.lo + high.lo));
}
template <class T>
PF_HD Twofold<T> operator-(Twofold<T> a, Twofold<T> b) {
  return a + -b;
}
template <class T>
PF_HD Twofold<T> operator*(Twofold<T> a, Twofold<T> b) {
  const Twofold<T> high = two_product(a.hi, b.hi);
  return fast_two_sum(high.hi, T(high.lo + (a.hi * b.lo + a.lo * b.hi)));
}
template <class T>
PF_HD Twofold<T> operator*(Twofold<T> a, T b) {
  const Twofold<T> high = two_product(a.hi, b);
  return fast_two_sum(high.hi, T(high.lo + a.lo * b));
}
template <class T>
PF_HD Twofold<T>& operator+=(Twofold<T>& a, Twofold<T> b) {
  return a = a + b;
}
template <class T>
PF_HD Twofold<T>& operator-=(Twofold<T>& a, Twofold<T> b) {
  return a = a - b;
}

PF_HD Real operator/(Real a, Real b) {
  const double first = a.hi / b.hi;
  Real rest = a - b * first;
  const double second = rest.hi / b.hi;
  rest = rest - b * second;
  return fast_two_sum(first, second) + rest.hi / b.hi;
}

PF_HD Real square_root(Real a) {
  const double root = __builtin_sqrt(a.hi);
  if (!(a.hi > 0.0)) return {root, 0.0};
  return fast_two_sum(root, (a - two_product(root, root)).hi / (2.0 * root));
}

PF_HD double rounded(Real a) { return a.hi + a.lo; }

}  // namespace PF_ISA
}  // namespace polyfuse
