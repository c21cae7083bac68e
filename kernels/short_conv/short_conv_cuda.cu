#include "kernels/short_conv/short_conv.h"

namespace weft {

void Run(CudaStream&, const ShortConvFwd&) {
  Fail(ExitCode::kFailure, "short_conv: no CUDA backend yet");
}
void Run(CudaStream&, const ShortConvBwd&) {
  Fail(ExitCode::kFailure, "short_conv: no CUDA backend yet");
}

}  // namespace weft
