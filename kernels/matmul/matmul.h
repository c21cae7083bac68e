#pragma once
// Linear map without bias:
//
//   y = x w^T,   dx = dy w,   dw = dy^T x
//
// The last dimension is mapped; all others are rows. Rows of x, w and y may be strided.

#include "kernels/base/op.h"

namespace weft {

struct MatmulFwd {
  TensorView x;  // [..., K]
  TensorView w;  // [N, K]
  TensorView y;  // [..., N]

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.In("x", s.x);
    v.In("w", s.w);
    v.Out("y", s.y);
  }
  void Check() const;
  double Flops() const {
    return 2.0 * static_cast<double>(x.size()) * static_cast<double>(w.dim(0));
  }
};

struct MatmulBwd {
  MatmulFwd fwd;
  TensorView dy;  // [..., N]
  Grad dx, dw;    // either may be left out

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.Upstream("dy", s.dy, s.fwd.y);
    v.Grad("dx", s.dx, s.fwd.x);
    v.ParamGrad("dw", s.dw, s.fwd.w);
  }
  void Check() const;
  double Flops() const { return fwd.Flops() * ((dx.defined() ? 1 : 0) + (dw.defined() ? 1 : 0)); }
};

void Run(CpuStream&, const MatmulFwd&);
void Run(CpuStream&, const MatmulBwd&);
void Run(CudaStream&, const MatmulFwd&);
void Run(CudaStream&, const MatmulBwd&);

}  // namespace weft
