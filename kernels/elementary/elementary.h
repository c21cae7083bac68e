#pragma once
// Scalar functions that compilers can vectorise, for float and double. In double they are the
// library's; in float they are polynomials with at most 2 ulp of error, so that loops over them
// become SIMD code without -ffast-math. NaN gives NaN everywhere. tests/laws/elementary_test.cc
// holds the bounds.

#include <bit>
#include <cmath>
#include <cstdint>

namespace weft {

// e^x. Float: x = n ln 2 + r with |r| <= ln2/2, and the polynomial of Cephes' expf for e^r.
// Subnormal results are kept; 0 below -104, infinity above 88.73.
inline float Exp(float x) {
  constexpr float kRound =
      12582912.f;  // 1.5 2^23: adding it rounds to the nearest integer, in the low bits
  const float low = x < -105.f ? -105.f : x;
  const float clamped = low > 89.f ? 89.f : low;
  const float shifted = std::fma(clamped, 1.44269504088896341f, kRound);
  const float n = shifted - kRound;
  float r = std::fma(n, -0.693145751953125f, clamped);
  r = std::fma(n, -1.42860682030941723212e-6f, r);
  float p = 1.9875691500e-4f;
  p = std::fma(p, r, 1.3981999507e-3f);
  p = std::fma(p, r, 8.3334519073e-3f);
  p = std::fma(p, r, 4.1665795894e-2f);
  p = std::fma(p, r, 1.6666665459e-1f);
  p = std::fma(p, r, 5.0000001201e-1f);
  p = std::fma(p, r * r, r) + 1.f;
  // 2^n in two factors, so that results near the ends of the range neither overflow nor vanish
  // early.
  const int32_t k = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound);
  const int32_t half = k >> 1;
  const float a = std::bit_cast<float>((half + 127) << 23);
  const float b = std::bit_cast<float>((k - half + 127) << 23);
  return p * a * b;
}
inline double Exp(double x) { return std::exp(x); }

#ifdef __CUDACC__
#define WEFT_HOST_DEVICE __host__ __device__
#else
#define WEFT_HOST_DEVICE
#endif

// 2 artanh(s) for s in [0, 1/3]: artanh(s)/s is a polynomial in s^2 whose own relative error is
// 5e-9.
WEFT_HOST_DEVICE inline float TwiceArtanh(float s) {
  const float z = s * s;
  float p = 0.140059935f;
  p = std::fma(p, z, 0.140009026f);
  p = std::fma(p, z, 0.200107636f);
  p = std::fma(p, z, 0.333332081f);
  return 2.f * std::fma(p * z, s, s);
}

// ln(1 + x) for x in [0, 1]: 2 artanh(x / (2 + x)).
inline float Log1pOfUnit(float x) { return TwiceArtanh(x / (2.f + x)); }
inline double Log1pOfUnit(double x) { return std::log1p(x); }

template <class T>
T Sigmoid(T x) {
  return T{1} / (T{1} + Exp(-x));
}

// ln(1 + e^x) without overflow.
template <class T>
T Softplus(T x) {
  return (x < 0 ? T{0} : x) + Log1pOfUnit(Exp(-std::abs(x)));
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

#ifdef __CUDACC__
// Sigmoid in four instructions of a GPU; relative error below 1e-7 (4 + |x|).
__device__ inline float DeviceSigmoid(float x) {
  float power, sigmoid;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-1.44269504f * x));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(sigmoid) : "f"(1.f + power));
  return sigmoid;
}
// ln(1 + e^x) without branches; relative error below 1e-7 (4 + |x|).
__device__ inline float DeviceSoftplus(float x) {
  float power, reciprocal;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-1.44269504f * fabsf(x)));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(2.f + power));
  return fmaxf(x, 0) + TwiceArtanh(power * reciprocal);
}
#endif

}  // namespace weft
