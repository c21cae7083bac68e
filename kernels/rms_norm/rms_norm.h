#pragma once
// RMSNorm with a learned scale and an optional fused residual (Zhang & Sennrich 2019, eq. 4;
// arXiv:1910.07467).
//
//   rstd = (mean_d(h^2) + eps)^(-1/2)
//
//   kNone    h = x,              y = h rstd w
//   kBefore  h = residual + x,   y = h rstd w             of pre-norm blocks
//   kAfter   h = x,              y = residual + h rstd w  of post-norm blocks
//
// For kBefore, sum = h is an output too: what a later residual reads. Statistics are taken over the
// last dimension D; rows are all other dimensions. Rows of x, residual and y may be strided.

#include "kernels/base/op.h"

namespace weft {

enum class Residual { kNone, kBefore, kAfter };

struct RmsNormFwd {
  TensorView x;         // [..., D]
  TensorView residual;  // [..., D], for kBefore and kAfter
  TensorView w;         // [D]
  TensorView y;         // [..., D]
  TensorView sum;       // [..., D], for kBefore; may be the memory of x
  TensorView rstd;      // [rows]
  Residual mode = Residual::kNone;
  double eps = 1e-6;

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.In("x", s.x);
    v.In("residual", s.residual);
    v.In("w", s.w);
    v.Out("y", s.y);
    v.Out("sum", s.sum);
    v.Saved("rstd", s.rstd);
  }
  void Check() const;
  double Flops() const { return 0; }
};

struct RmsNormBwd {
  RmsNormFwd fwd;
  TensorView dy;    // [..., D]
  TensorView dsum;  // [..., D], for kBefore, may be left out when nothing reads sum
  Grad dx, dw;
  Grad dresidual;  // may be left out where dx, or dy for kAfter, is that gradient already

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.Upstream("dy", s.dy, s.fwd.y);
    v.Upstream("dsum", s.dsum, s.fwd.sum);
    v.Grad("dx", s.dx, s.fwd.x);
    v.Grad("dresidual", s.dresidual, s.fwd.residual);
    v.ParamGrad("dw", s.dw, s.fwd.w);
  }
  void Check() const;
  double Flops() const { return 0; }
  double Bytes() const {
    return BytesOf(fwd.x) + BytesOf(fwd.w) + BytesOf(fwd.rstd) + BytesOf(dy) + BytesOf(dsum) +
           BytesOf(dx) + BytesOf(dw) + BytesOf(dresidual);
  }
};

void Run(CpuStream&, const RmsNormFwd&);
void Run(CpuStream&, const RmsNormBwd&);
void Run(CudaStream&, const RmsNormFwd&);
void Run(CudaStream&, const RmsNormBwd&);

}  // namespace weft
