#pragma once
// RMSNorm over a head or all heads, then rotary positions, for any scalar.

#include <cmath>
#include <complex>
#include <vector>

#include "kernels/qk_norm_rope/qk_norm_rope.h"

namespace weft {

template <class T>
void QkNormRopeRef(const QkNormRopeFwd& f) {
  const auto x = f.x.As<T, 4>(), y = f.y.As<T, 4>();
  const auto w = f.w.As<T, 1>();
  const int64_t B = x.shape[0], L = x.shape[1], H = x.shape[2], K = x.shape[3];
  std::vector<T> n(static_cast<size_t>(K));
  const auto squares = [&](int64_t b, int64_t t, int64_t h) {
    T sum = 0;
    for (int64_t k = 0; k < K; ++k) sum += x(b, t, h, k) * x(b, t, h, k);
    return sum;
  };
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < L; ++t) {
      T all = 0;
      for (int64_t h = 0; h < H; ++h) all += squares(b, t, h);
      for (int64_t h = 0; h < H; ++h) {
        const bool full = f.norm == QkNorm::kFull;
        const T mean = full ? all / T(static_cast<double>(H * K))
                            : squares(b, t, h) / T(static_cast<double>(K));
        const T rstd = T(1) / sqrt(mean + T(f.eps));
        for (int64_t k = 0; k < K; ++k) {
          T& value = n[static_cast<size_t>(k)] = x(b, t, h, k);
          if (f.norm != QkNorm::kNone) value *= rstd * w(full ? h * K + k : k);
        }
        for (int64_t k = 0; k < K; ++k) {
          if (f.theta == 0) {
            y(b, t, h, k) = n[static_cast<size_t>(k)];
            continue;
          }
          const int64_t half = K / 2, i = k % half;
          const double angle =
              static_cast<double>(f.offset + t) *
              std::pow(f.theta, -2 * static_cast<double>(i) / static_cast<double>(K));
          const T rotated =
              k < half ? -n[static_cast<size_t>(k + half)] : n[static_cast<size_t>(k - half)];
          y(b, t, h, k) =
              n[static_cast<size_t>(k)] * T(std::cos(angle)) + rotated * T(std::sin(angle));
        }
      }
    }
  }
}

}  // namespace weft
