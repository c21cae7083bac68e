#include "kernels/qk_norm_rope/qk_norm_rope.h"

namespace weft {

void Run(CudaStream&, const QkNormRopeFwd&) {
  Fail(ExitCode::kFailure, "qk_norm_rope: no CUDA backend yet");
}
void Run(CudaStream&, const QkNormRopeBwd&) {
  Fail(ExitCode::kFailure, "qk_norm_rope: no CUDA backend yet");
}

}  // namespace weft
