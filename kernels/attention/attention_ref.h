#pragma once
// Softmax attention as in the paper, one query at a time, for any scalar.

#include <algorithm>
#include <complex>
#include <limits>
#include <vector>

#include "kernels/attention/attention.h"

namespace weft {

template <class T>
void AttentionRef(const AttentionFwd& f) {
  const auto q = f.q.As<T, 4>(), k = f.k.As<T, 4>(), v = f.v.As<T, 4>(), y = f.y.As<T, 4>();
  const auto lse = f.lse.As<T, 3>();
  const auto doc_start = f.doc_start.As<int32_t, 2>();
  const int64_t B = q.shape[0], Tq = q.shape[1], H = q.shape[2], K = q.shape[3];
  const int64_t Tk = k.shape[1], Hkv = k.shape[2], V = v.shape[3];
  std::vector<T> e(static_cast<size_t>(Tk));
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t h = 0; h < H; ++h) {
      const int64_t g = h / (H / Hkv);
      for (int64_t i = 0; i < Tq; ++i) {
        const int64_t p = i + Tk - Tq;
        int64_t first = doc_start ? doc_start(b, p) : 0;
        if (f.window > 0) first = std::max(first, p - f.window + 1);
        double largest = -std::numeric_limits<double>::infinity();
        for (int64_t j = first; j <= p; ++j) {
          T dot = 0;
          for (int64_t c = 0; c < K; ++c) dot += q(b, i, h, c) * k(b, j, g, c);
          e[static_cast<size_t>(j)] = T(f.scale) * dot;
          largest = std::max(largest, std::real(e[static_cast<size_t>(j)]));
        }
        T sum = 0;
        for (int64_t j = first; j <= p; ++j) {
          T& ej = e[static_cast<size_t>(j)];
          ej = exp(ej - T(largest));  // a constant: it cancels, and so does its derivative
          sum += ej;
        }
        lse(b, h, i) = T(largest) + log(sum);
        for (int64_t c = 0; c < V; ++c) {
          T mean = 0;
          for (int64_t j = first; j <= p; ++j) mean += e[static_cast<size_t>(j)] * v(b, j, g, c);
          y(b, i, h, c) = mean / sum;
        }
      }
    }
  }
}

}  // namespace weft
