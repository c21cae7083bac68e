#pragma once
// Scalar functions that compilers can vectorise, for float and double. In double they are the library's; in float Exp is
// a polynomial with at most 2 ulp of error, so that loops over it become SIMD code without -ffast-math.

#include <bit>
#include <cmath>
#include <cstdint>

namespace weft {

// e^x. Float: range reduction x = n ln 2 + r with |r| <= ln2/2 and a degree-6 minimax polynomial of e^r; 0 below
// -87.3, infinity above 88.7, NaN for NaN.
inline float Exp(float x) {
  const float clamped = x < -104.f ? -104.f : (x > 89.f ? 89.f : x);  // false for NaN: NaN stays
  const float n = std::nearbyintf(clamped * 1.44269504088896341f);
  float r = std::fma(n, -0.693145751953125f, clamped);
  r = std::fma(n, -1.42860682030941723212e-6f, r);
  float p = 1.3981999507e-3f;
  p = std::fma(p, r, 8.3334519073e-3f);
  p = std::fma(p, r, 4.1665795894e-2f);
  p = std::fma(p, r, 1.6666665459e-1f);
  p = std::fma(p, r, 5.0000001201e-1f);
  p = std::fma(p, r * r, r) + 1.f;
  // 2^n in two factors, so that results near the ends of the range neither overflow nor vanish early.
  const int32_t k = static_cast<int32_t>(n), half = k >> 1;
  const float a = std::bit_cast<float>((half + 127) << 23), b = std::bit_cast<float>((k - half + 127) << 23);
  return p * a * b;
}
inline double Exp(double x) { return std::exp(x); }

template <class T>
T Sigmoid(T x) {
  return T{1} / (T{1} + Exp(-x));
}

// ln(1 + e^x) without overflow.
template <class T>
T Softplus(T x) {
  return (x > 0 ? x : T{0}) + std::log1p(Exp(-std::abs(x)));
}

// x sigmoid(x) and its derivative.
template <class T>
T Silu(T x) {
  return x * Sigmoid(x);
}
template <class T>
T SiluGrad(T x) {
  const T s = Sigmoid(x);
  return s * (1 + x * (1 - s));
}

}  // namespace weft
