#include "kernels/attention/attention.h"

namespace weft {

void Run(CudaStream&, const AttentionFwd&) {
  Fail(ExitCode::kFailure, "attention: no CUDA backend yet");
}
void Run(CudaStream&, const AttentionBwd&) {
  Fail(ExitCode::kFailure, "attention: no CUDA backend yet");
}

}  // namespace weft
