#pragma once
// y[b, t] = w[token[b, t]], for any scalar.

#include "kernels/embedding/embedding.h"

namespace weft {

template <class T>
void EmbeddingRef(const EmbeddingFwd& f) {
  const auto token = f.tokens.As<const int32_t, 2>();
  const auto w = f.w.As<T, 2>();
  const auto y = f.y.As<T, 3>();
  for (int64_t b = 0; b < y.shape[0]; ++b) {
    for (int64_t t = 0; t < y.shape[1]; ++t) {
      for (int64_t d = 0; d < y.shape[2]; ++d) y(b, t, d) = w(token(b, t), d);
    }
  }
}

}  // namespace weft
