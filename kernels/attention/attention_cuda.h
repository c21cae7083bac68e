#pragma once
// The kernels behind Run(CudaStream&, ...) of attention. Run takes the first that applies; one that
// does not returns false and launches nothing.

#include "kernels/attention/attention.h"

namespace weft {

#ifdef WEFT_CUDNN
bool CudnnAttention(CudaStream&, const AttentionFwd&);
bool CudnnAttention(CudaStream&, const AttentionBwd&);
#endif

}  // namespace weft
