#pragma once
// RMSNorm as in the paper, for any scalar.

#include "kernels/rms_norm/rms_norm.h"

namespace weft {

template <class T>
void RmsNormRef(const RmsNormFwd& f) {
  const auto x = f.x.Rows().As<T, 2>(), y = f.y.Rows().As<T, 2>();
  const auto w = f.w.As<T, 1>();
  const bool before = f.mode == Residual::kBefore, after = f.mode == Residual::kAfter;
  const auto residual = before || after ? f.residual.Rows().As<T, 2>() : Nd<T, 2>{};
  const auto sum = before ? f.sum.Rows().As<T, 2>() : Nd<T, 2>{};
  const int64_t rows = x.shape[0], D = x.shape[1];
  for (int64_t r = 0; r < rows; ++r) {
    T squares = 0;
    for (int64_t d = 0; d < D; ++d) {
      const T h = before ? x(r, d) + residual(r, d) : x(r, d);
      squares += h * h;
    }
    const T rstd = T(1) / sqrt(squares / T(static_cast<double>(D)) + T(f.eps));
    for (int64_t d = 0; d < D; ++d) {
      const T h = before ? x(r, d) + residual(r, d) : x(r, d);
      y(r, d) = h * rstd * w(d);
      if (after) y(r, d) += residual(r, d);
      if (before) sum(r, d) = h;
    }
  }
}

}  // namespace weft
