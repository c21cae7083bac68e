#include "kernels/decay_gate/decay_gate.h"

namespace weft {

void Run(CudaStream&, const DecayGateFwd&) {
  Fail(ExitCode::kFailure, "decay_gate: no CUDA backend yet");
}
void Run(CudaStream&, const DecayGateBwd&) {
  Fail(ExitCode::kFailure, "decay_gate: no CUDA backend yet");
}

}  // namespace weft
