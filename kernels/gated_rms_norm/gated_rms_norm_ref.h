#pragma once
// The norm as it is defined, for any scalar.

#include "kernels/gated_rms_norm/gated_rms_norm.h"

namespace weft {

template <class T>
void GatedRmsNormRef(const GatedRmsNormFwd& f) {
  const auto x = f.x.As<T, 4>(), gate = f.gate.As<T, 4>(), y = f.y.As<T, 4>();
  const auto w = f.w.As<T, 1>();
  const auto [B, L, H, V] = x.shape;
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < L; ++t) {
      for (int64_t h = 0; h < H; ++h) {
        T squares = 0;
        for (int64_t c = 0; c < V; ++c) squares += x(b, t, h, c) * x(b, t, h, c);
        const T rstd = T(1) / sqrt(squares / T(static_cast<double>(V)) + T(f.eps));
        for (int64_t c = 0; c < V; ++c) {
          const T g = gate(b, t, h, c);
          y(b, t, h, c) = x(b, t, h, c) * rstd * w(c) * g / (T(1) + exp(-g));
        }
      }
    }
  }
}

}  // namespace weft
