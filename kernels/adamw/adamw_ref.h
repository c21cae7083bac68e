#pragma once
// AdamW, line by line as in algorithm 2 of the paper, with lr for its alpha and for the multiplier
// of its decay.

#include <cmath>

#include "kernels/adamw/adamw.h"

namespace weft {

template <class T>
void AdamwRef(const AdamwStep& s) {
  const auto theta = s.p.As<T, 1>(), g = s.g.As<T, 1>(), m = s.m.As<T, 1>(), v = s.v.As<T, 1>();
  const auto schedule = s.schedule.As<T, 1>();
  const T lr = schedule(0), c1 = schedule(1), c2 = schedule(2);
  const T scale = s.scale.defined() ? s.scale.As<T, 1>()(0) : T(1);
  for (int64_t i = 0; i < theta.shape[0]; ++i) {
    const T gradient = scale * g(i), lambda = T(i < s.decayed ? s.weight_decay : 0);
    m(i) = s.beta1 * m(i) + (1 - s.beta1) * gradient;
    v(i) = s.beta2 * v(i) + (1 - s.beta2) * gradient * gradient;
    const T m_hat = m(i) / c1;
    const T v_hat = v(i) / c2;
    theta(i) -= lr * (m_hat / (sqrt(v_hat) + s.eps) + lambda * theta(i));
    if (s.copy.defined()) s.copy.As<T, 1>()(i) = theta(i);
  }
}

}  // namespace weft
