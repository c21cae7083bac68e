#pragma once
// The recurrence, token by token, for any scalar.

#include <vector>

#include "kernels/gated_delta/gated_delta.h"

namespace weft {

template <class T>
void GatedDeltaRef(const GatedDeltaFwd& f) {
  const auto q = f.q.As<T, 4>(), k = f.k.As<T, 4>(), v = f.v.As<T, 4>(), y = f.y.As<T, 4>();
  const auto beta = f.beta.As<T, 3>(), log_a = f.log_a.As<T, 3>();
  const auto doc_start = f.doc_start.As<const int32_t, 2>();
  const auto initial = f.initial.As<T, 4>(), final_state = f.final_state.As<T, 4>();
  const auto [B, L, H, K] = q.shape;
  const int64_t V = v.shape[3];
  std::vector<T> state(static_cast<size_t>(K * V)), u(static_cast<size_t>(V));
  const auto S = [&](int64_t c, int64_t r) -> T& { return state[static_cast<size_t>(c * V + r)]; };
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t c = 0; c < K; ++c) {
        for (int64_t r = 0; r < V; ++r) S(c, r) = initial ? initial(b, h, c, r) : T(0);
      }
      for (int64_t t = 0; t < L; ++t) {
        if (doc_start && t > 0 && doc_start(b, t) == t) state.assign(state.size(), T(0));
        const T a = exp(log_a(b, t, h));
        for (int64_t r = 0; r < V; ++r) {
          T read = 0;
          for (int64_t c = 0; c < K; ++c) read += a * S(c, r) * k(b, t, h, c);
          u[static_cast<size_t>(r)] = beta(b, t, h) * (v(b, t, h, r) - read);
        }
        for (int64_t r = 0; r < V; ++r) {
          T out = 0;
          for (int64_t c = 0; c < K; ++c) {
            S(c, r) = a * S(c, r) + k(b, t, h, c) * u[static_cast<size_t>(r)];
            out += S(c, r) * q(b, t, h, c);
          }
          y(b, t, h, r) = T(f.scale) * out;
        }
      }
      for (int64_t c = 0; c < K; ++c) {
        for (int64_t r = 0; final_state && r < V; ++r) final_state(b, h, c, r) = S(c, r);
      }
    }
  }
}

}  // namespace weft
