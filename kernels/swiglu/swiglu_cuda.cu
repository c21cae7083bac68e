#include "kernels/swiglu/swiglu.h"

namespace weft {

void Run(CudaStream&, const SwigluFwd&) { Fail(ExitCode::kFailure, "swiglu: no CUDA backend yet"); }
void Run(CudaStream&, const SwigluBwd&) { Fail(ExitCode::kFailure, "swiglu: no CUDA backend yet"); }

}  // namespace weft
