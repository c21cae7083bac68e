#include "kernels/gated_delta/gated_delta.h"

namespace weft {

void Run(CudaStream&, const GatedDeltaFwd&) {
  Fail(ExitCode::kFailure, "gated_delta: no CUDA backend yet");
}
void Run(CudaStream&, const GatedDeltaBwd&) {
  Fail(ExitCode::kFailure, "gated_delta: no CUDA backend yet");
}

}  // namespace weft
