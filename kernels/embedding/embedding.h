#pragma once
// Token embedding, with v = token[b, t]:
//
//   y[b, t] = w[v]
//   dw[v]   = sum of dy[b, t] over the places (b, t) where v stands
//
// A token outside [0, V) is an error that names it, found when the op runs; on a GPU, which cannot
// stop there, its y is NaN.

#include <algorithm>

#include "kernels/base/op.h"

namespace weft {

struct EmbeddingFwd {
  TensorView tokens;  // i32 [B, T]
  TensorView w;       // [V, D]
  TensorView y;       // [B, T, D]

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.In("tokens", s.tokens);
    v.In("w", s.w);
    v.Out("y", s.y);
  }
  void Check() const;
  double Flops() const { return 0; }
  double Bytes() const {  // rows of w that are looked up
    return BytesOf(tokens) + std::min(BytesOf(w), BytesOf(y)) + BytesOf(y);
  }
};

struct EmbeddingBwd {
  EmbeddingFwd fwd;
  TensorView dy;  // [B, T, D]
  Grad dw;

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.Upstream("dy", s.dy, s.fwd.y);
    v.ParamGrad("dw", s.dw, s.fwd.w);
  }
  void Check() const;
  double Flops() const { return 0; }
  double Bytes() const { return BytesOf(fwd.tokens) + BytesOf(dy) + BytesOf(dw); }
};

void Run(CpuStream&, const EmbeddingFwd&);
void Run(CpuStream&, const EmbeddingBwd&);
void Run(CudaStream&, const EmbeddingFwd&);
void Run(CudaStream&, const EmbeddingBwd&);

}  // namespace weft
