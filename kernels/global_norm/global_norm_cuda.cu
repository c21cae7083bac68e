#include "kernels/global_norm/global_norm.h"

namespace weft {

void Run(CudaStream&, const GlobalNormFwd&) {
  Fail(ExitCode::kFailure, "global_norm: no CUDA backend yet");
}

}  // namespace weft
