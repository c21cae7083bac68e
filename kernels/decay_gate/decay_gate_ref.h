#pragma once
// The gates as they are defined, for any scalar.

#include "kernels/decay_gate/decay_gate.h"

namespace weft {

template <class T>
void DecayGateRef(const DecayGateFwd& f) {
  const auto a = f.a.As<T, 3>(), b = f.b.As<T, 3>(), log_a = f.log_a.As<T, 3>(),
             beta = f.beta.As<T, 3>();
  const auto a_log = f.a_log.As<T, 1>(), dt_bias = f.dt_bias.As<T, 1>();
  for (int64_t row = 0; row < a.shape[0]; ++row) {
    for (int64_t t = 0; t < a.shape[1]; ++t) {
      for (int64_t h = 0; h < a.shape[2]; ++h) {
        const T z = a(row, t, h) + dt_bias(h);
        log_a(row, t, h) = -exp(a_log(h)) * log(T(1) + exp(z));
        beta(row, t, h) = T(f.beta_scale) / (T(1) + exp(-b(row, t, h)));
      }
    }
  }
}

}  // namespace weft
