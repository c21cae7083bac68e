#pragma once
// Causal depthwise convolution over a few tokens, with SiLU and the L2 norm of the heads that need
// it, in one pass (Yang, Kautz, Hatamizadeh 2024, figure 1; arXiv:2412.06464).
//
//   z_{t,c} = sum_{j < W} w_{c,j} x_{t-W+1+j, c}              tap W-1 is the current token
//   s = silu(z) = z sigmoid(z)                                or s = z without silu
//   y = s / sqrt(sum_{group} s^2 + norm_eps)                  channels c < norm_channels
//   y = s                                                     the others
//
// A group is norm_group consecutive channels, a head. Taps before the first token of the sequence
// read `history`, or zero; taps before the first token of t's document, doc_start(b, t), are zero,
// and only a document with doc_start = 0 reads history. The backward takes history as given: it has
// no gradient for it.

#include "kernels/base/op.h"

namespace weft {

inline constexpr int64_t kShortConvMaxWidth = 8;

struct ShortConvFwd {
  TensorView x;            // [B, T, C]
  TensorView w;            // [C, W], 1 <= W <= 8
  TensorView doc_start;    // i32 [B, T], optional
  TensorView history;      // [B, W-1, C], optional: the inputs before t = 0, oldest first
  TensorView history_out;  // [B, W-1, C], optional: history of a continuation; may be `history`
  TensorView y;            // [B, T, C]
  TensorView rstd;         // saved [B, T, norm_channels / norm_group]; left out without a backward
  bool silu = true;
  int64_t norm_channels = 0, norm_group = 0;
  double norm_eps = 1e-6;

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.In("x", s.x);
    v.In("w", s.w);
    v.In("doc_start", s.doc_start);
    v.In("history", s.history);
    v.Out("history_out", s.history_out);
    v.Out("y", s.y);
    v.Saved("rstd", s.rstd);
  }
  void Check() const;
  double Flops() const { return 2.0 * static_cast<double>(x.size() * w.dim(1)); }
};

struct ShortConvBwd {
  ShortConvFwd fwd;
  TensorView dy;  // [B, T, C]
  Grad dx, dw;

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.Upstream("dy", s.dy, s.fwd.y);
    v.Grad("dx", s.dx, s.fwd.x);
    v.ParamGrad("dw", s.dw, s.fwd.w);
  }
  void Check() const;
  double Flops() const { return 3 * fwd.Flops(); }
};

void Run(CpuStream&, const ShortConvFwd&);
void Run(CpuStream&, const ShortConvBwd&);
void Run(CudaStream&, const ShortConvFwd&);
void Run(CudaStream&, const ShortConvBwd&);

}  // namespace weft
