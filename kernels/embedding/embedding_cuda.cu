#include "kernels/embedding/embedding.h"

namespace weft {

void Run(CudaStream&, const EmbeddingFwd&) {
  Fail(ExitCode::kFailure, "embedding: no CUDA backend yet");
}
void Run(CudaStream&, const EmbeddingBwd&) {
  Fail(ExitCode::kFailure, "embedding: no CUDA backend yet");
}

}  // namespace weft
