#pragma once
// RMSNorm of each head's output with a learned scale, times a SiLU gate (Yang, Kautz, Hatamizadeh
// 2024, figure 1; arXiv:2412.06464):
//
//   rstd = (mean_v(x^2) + eps)^(-1/2)
//   y    = x rstd w silu(gate)             silu(g) = g sigmoid(g)

#include "kernels/base/op.h"

namespace weft {

struct GatedRmsNormFwd {
  TensorView x, gate;  // [B, T, H, V]
  TensorView w;        // [V], shared by the heads
  TensorView y;        // [B, T, H, V]
  TensorView rstd;     // saved [B, T, H]; left out when no backward will run
  double eps = 1e-5;

  template <class Self, class Visitor>
  static void Visit(Self& s, Visitor&& visit) {
    visit.In("x", s.x);
    visit.In("gate", s.gate);
    visit.In("w", s.w);
    visit.Out("y", s.y);
    visit.Saved("rstd", s.rstd);
  }
  void Check() const;
  double Flops() const { return 0; }
};

struct GatedRmsNormBwd {
  GatedRmsNormFwd fwd;
  TensorView dy;  // [B, T, H, V]
  Grad dx, dgate, dw;

  template <class Self, class Visitor>
  static void Visit(Self& s, Visitor&& visit) {
    visit.Upstream("dy", s.dy, s.fwd.y);
    visit.Grad("dx", s.dx, s.fwd.x);
    visit.Grad("dgate", s.dgate, s.fwd.gate);
    visit.ParamGrad("dw", s.dw, s.fwd.w);
  }
  void Check() const;
  double Flops() const { return 0; }
};

void Run(CpuStream&, const GatedRmsNormFwd&);
void Run(CpuStream&, const GatedRmsNormBwd&);
void Run(CudaStream&, const GatedRmsNormFwd&);
void Run(CudaStream&, const GatedRmsNormBwd&);

}  // namespace weft
