#pragma once
// SwiGLU as in the paper, for any scalar.

#include "kernels/swiglu/swiglu.h"

namespace weft {

template <class T>
void SwigluRef(const SwigluFwd& f) {
  const auto gate_up = f.gate_up.Rows().As<T, 2>(), y = f.y.Rows().As<T, 2>();
  const int64_t F = y.shape[1];
  for (int64_t r = 0; r < y.shape[0]; ++r) {
    for (int64_t i = 0; i < F; ++i) {
      const T gate = gate_up(r, i), up = gate_up(r, F + i);
      y(r, i) = gate / (T(1) + exp(-gate)) * up;
    }
  }
}

}  // namespace weft
