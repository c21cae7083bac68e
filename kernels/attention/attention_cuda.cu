#include "kernels/attention/attention_cuda.h"

namespace weft {

void Run(CudaStream& stream, const AttentionFwd& op) {
#ifdef WEFT_CUDNN
  if (CudnnAttention(stream, op)) return;
#endif
  (void)stream, (void)op;
  Fail(ExitCode::kFailure, "attention: no CUDA backend yet");
}
void Run(CudaStream& stream, const AttentionBwd& op) {
#ifdef WEFT_CUDNN
  if (CudnnAttention(stream, op)) return;
#endif
  (void)stream, (void)op;
  Fail(ExitCode::kFailure, "attention: no CUDA backend yet");
}

}  // namespace weft
