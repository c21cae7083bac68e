#pragma once
// One step of AdamW (Loshchilov & Hutter 2019, algorithm 2; arXiv:1711.05101), with the decay
// multiplied by lr as PyTorch does it:
//
//   g <- scale g
//   m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2
//   p <- (1 - lr weight_decay) p - lr m^ / (sqrt(v^) + eps),   m^ = m / (1 - beta1^step),  v^ = v /
//   (1 - beta2^step)
//
// Parameters that decay come first: [0, decayed). g is read only.

#include "kernels/base/op.h"

namespace weft {

struct AdamwStep {
  TensorView p, g, m, v;  // [n]
  TensorView scale;       // [1], may be left out: 1
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  int64_t step = 1;     // the first step is 1
  int64_t decayed = 0;  // in [0, n]

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.InOut("p", s.p);
    v.In("g", s.g);
    v.InOut("m", s.m);
    v.InOut("v", s.v);
    v.In("scale", s.scale);
  }
  void Check() const;
  double Flops() const { return 0; }
};

void Run(CpuStream&, const AdamwStep&);

}  // namespace weft
