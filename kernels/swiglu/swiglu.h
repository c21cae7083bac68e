#pragma once
// SwiGLU gate (Shazeer 2020, section 2; arXiv:2002.05202):
//
//   y = silu(gate) up,   silu(x) = x / (1 + e^-x)
//
// gate and up are the two halves of one projection. Rows may be strided.

#include "kernels/base/op.h"

namespace weft {

struct SwigluFwd {
  TensorView gate_up;  // [..., 2F]  gate first, then up
  TensorView y;        // [..., F]

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.In("gate_up", s.gate_up);
    v.Out("y", s.y);
  }
  void Check() const;
  double Flops() const { return 0; }
};

struct SwigluBwd {
  SwigluFwd fwd;
  TensorView dy;   // [..., F]
  Grad dgate_up;   // may be the memory of gate_up, when it is overwritten
  TensorView y;    // [..., F], optional: the forward's y once more, which may be the memory of dy

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.Upstream("dy", s.dy, s.fwd.y);
    v.Grad("dgate_up", s.dgate_up, s.fwd.gate_up);
  }
  void Check() const;
  double Flops() const { return 0; }
};

void Run(CpuStream&, const SwigluFwd&);
void Run(CpuStream&, const SwigluBwd&);
void Run(CudaStream&, const SwigluFwd&);
void Run(CudaStream&, const SwigluBwd&);

}  // namespace weft
