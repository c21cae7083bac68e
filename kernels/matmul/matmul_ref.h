#pragma once
// y = x w^T, for any scalar.

#include "kernels/matmul/matmul.h"

namespace weft {

template <class T>
void MatmulRef(const MatmulFwd& f) {
  const auto x = f.x.Rows().As<T, 2>(), w = f.w.As<T, 2>(), y = f.y.Rows().As<T, 2>();
  for (int64_t r = 0; r < y.shape[0]; ++r) {
    for (int64_t n = 0; n < y.shape[1]; ++n) {
      T sum = 0;
      for (int64_t k = 0; k < x.shape[1]; ++k) sum += x(r, k) * w(n, k);
      y(r, n) = sum;
    }
  }
}

}  // namespace weft
