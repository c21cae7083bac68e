#pragma once
// The convolution as it is defined, for any scalar.

#include <vector>

#include "kernels/short_conv/short_conv.h"

namespace weft {

template <class T>
void ShortConvRef(const ShortConvFwd& f) {
  const auto x = f.x.As<T, 3>(), y = f.y.As<T, 3>(), history = f.history.As<T, 3>();
  const auto history_out = f.history_out.As<T, 3>();
  const auto w = f.w.As<T, 2>();
  const auto doc_start = f.doc_start.As<const int32_t, 2>();
  const auto [B, L, C] = x.shape;
  const int64_t W = w.shape[1];
  // Input at time t as a token of a document that starts at `start` sees it.
  const auto input = [&](int64_t b, int64_t t, int64_t start, int64_t c) {
    if (t >= 0) return t >= start ? x(b, t, c) : T(0);
    return history && start == 0 && t >= 1 - W ? history(b, t + W - 1, c) : T(0);
  };
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < L; ++t) {
      const int64_t start = doc_start ? doc_start(b, t) : 0;
      for (int64_t c = 0; c < C; ++c) {
        T z = 0;
        for (int64_t j = 0; j < W; ++j) z += w(c, j) * input(b, t - W + 1 + j, start, c);
        y(b, t, c) = f.silu ? z / (T(1) + exp(-z)) : z;
      }
      for (int64_t g = 0; g < f.norm_channels; g += f.norm_group) {
        T squares = 0;
        for (int64_t c = g; c < g + f.norm_group; ++c) squares += y(b, t, c) * y(b, t, c);
        for (int64_t c = g; c < g + f.norm_group; ++c) y(b, t, c) /= sqrt(squares + T(f.norm_eps));
      }
    }
    const int64_t last_start = doc_start && L > 0 ? doc_start(b, L - 1) : 0;
    for (int64_t j = 0; history_out && j < W - 1; ++j) {
      for (int64_t c = 0; c < C; ++c) history_out(b, j, c) = input(b, L - W + 1 + j, last_start, c);
    }
  }
}

}  // namespace weft
