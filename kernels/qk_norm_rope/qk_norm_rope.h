#pragma once
// What stands between a query or key projection and attention: an optional RMSNorm, then optional
// rotary positions (RMSNorm: arXiv:1910.07467; QK-norm: arXiv:2302.05442; RoPE: Su et al. 2021, eq.
// 15 and 34, arXiv:2104.09864).
//
//   kNone  n = x
//   kHead  n = x rstd w,   rstd[b, t, h] = (mean_k x^2 + eps)^(-1/2)
//   kFull  n = x rstd w,   rstd[b, t] = (mean_{h, k} x^2 + eps)^(-1/2)
//
// kFull is before the split into heads, as in Olmo. With theta = 0, y = n; otherwise in the
// half-split convention, for i < K/2:
//
//   angle       = (offset + t) theta^(-2i/K)
//   y_i         = n_i cos - n_{i + K/2} sin
//   y_{i + K/2} = n_{i + K/2} cos + n_i sin
//
// The bits of y[b, t] depend on x[b, t] and the position alone.

#include "kernels/base/op.h"

namespace weft {

enum class QkNorm { kNone, kHead, kFull };

struct QkNormRopeFwd {
  TensorView x;     // [B, T, H, K]    K even if theta > 0
  TensorView w;     // [K] for kHead, [H*K] for kFull
  TensorView y;     // [B, T, H, K]
  TensorView rstd;  // [B, T, H] for kHead, [B, T] for kFull
  QkNorm norm = QkNorm::kNone;
  double eps = 1e-6;
  double theta = 0;    // base of the wavelengths, > 1; 0 = no rotation
  int64_t offset = 0;  // position of the first token, >= 0

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.In("x", s.x);
    v.In("w", s.w);
    v.Out("y", s.y);
    v.Saved("rstd", s.rstd);
  }
  void Check() const;
  double Flops() const { return 0; }
};

struct QkNormRopeBwd {
  QkNormRopeFwd fwd;
  TensorView dy;  // [B, T, H, K]
  Grad dx, dw;

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.Upstream("dy", s.dy, s.fwd.y);
    v.Grad("dx", s.dx, s.fwd.x);
    v.ParamGrad("dw", s.dw, s.fwd.w);
  }
  void Check() const;
  double Flops() const { return 0; }
  double Bytes() const {  // x matters to norms alone
    const double x = fwd.norm == QkNorm::kNone ? 0 : BytesOf(fwd.x);
    return x + BytesOf(fwd.w) + BytesOf(fwd.rstd) + BytesOf(dy) + BytesOf(dx) + BytesOf(dw);
  }
};

void Run(CpuStream&, const QkNormRopeFwd&);
void Run(CpuStream&, const QkNormRopeBwd&);
void Run(CudaStream&, const QkNormRopeFwd&);
void Run(CudaStream&, const QkNormRopeBwd&);

}  // namespace weft
