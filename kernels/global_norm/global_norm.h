#pragma once
// Global gradient norm and the factor that clips it (Pascanu et al. 2013;
// torch.nn.utils.clip_grad_norm_):
//
//   norm = |x|_2,   scale = min(1, max_norm / (norm + 1e-6));   scale = 1 when max_norm <= 0
//
// Squares of floats are summed in double. NaN and inf in x reach norm; a norm that is not finite
// gives a NaN scale, which stops the optimiser (adamw.h).

#include "kernels/base/op.h"

namespace weft {

struct GlobalNormFwd {
  TensorView x;      // [n]
  TensorView norm;   // [1]
  TensorView scale;  // [1]
  double max_norm = 0;

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.In("x", s.x);
    v.Out("norm", s.norm);
    v.Out("scale", s.scale);
  }
  void Check() const;
  double Flops() const { return 0; }
};

void Run(CpuStream&, const GlobalNormFwd&);
void Run(CudaStream&, const GlobalNormFwd&);

}  // namespace weft
