#pragma once
// One step of AdamW (Loshchilov & Hutter 2019, algorithm 2; arXiv:1711.05101), with the decay
// multiplied by lr as PyTorch does it:
//
//   g <- scale g
//   m <- beta1 m + (1 - beta1) g
//   v <- beta2 v + (1 - beta2) g^2
//   p <- (1 - lr weight_decay) p - lr (m / c1) / (sqrt(v / c2) + eps)
//
//   c1 = 1 - beta1^step,   c2 = 1 - beta2^step
//
// schedule = (lr, c1, c2) is read from memory, so that a captured step can be replayed. Parameters
// that decay come first: [0, decayed). g is read only. A scale that is not a number (a gradient
// that is not finite) leaves everything as it is.

#include "kernels/base/op.h"

namespace weft {

struct AdamwStep {
  TensorView p, g, m, v;  // [n]
  TensorView scale;       // [1], may be left out: 1
  TensorView schedule;    // [3]
  TensorView copy;        // bf16 [n], may be left out: p rounded, for products
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  int64_t decayed = 0;  // in [0, n]

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.InOut("p", s.p);
    v.In("g", s.g);
    v.InOut("m", s.m);
    v.InOut("v", s.v);
    v.In("scale", s.scale);
    v.In("schedule", s.schedule);
    v.Out("copy", s.copy);
  }
  void Check() const;
  double Flops() const { return 0; }
};

void Run(CpuStream&, const AdamwStep&);
void Run(CudaStream&, const AdamwStep&);

}  // namespace weft
