#pragma once
// The kernels behind Run(CudaStream&, ...) of attention. Run takes the first that applies; one that
// does not returns false and launches nothing.

#include "kernels/attention/attention.h"

namespace weft {

#ifdef WEFT_CUDNN
bool CudnnAttention(CudaStream&, const AttentionFwd&);
bool CudnnAttention(CudaStream&, const AttentionBwd&);
#endif
// bf16, K and V multiples of 8 up to 256, rows aligned to 16 bytes: mma.sync, from sm_80 on.
bool TensorCoreAttention(CudaStream&, const AttentionFwd&);
bool TensorCoreAttention(CudaStream&, const AttentionBwd&);

// What every backward needs first, in the stream's scratch.
struct AttentionRows {
  float* lse2;      // [B * H, padded]   lse / log 2; infinite behind the last query
  float* delta;     // [B * H, padded]   <dy, y>; 0 behind the last query
  int* last_query;  // [B, key tiles]    the last query that sees a key of the tile, or one before
  int64_t padded;   // Tq rounded up to 128
};
AttentionRows PrepareBackward(CudaStream&, const AttentionBwd&, int key_tile);

}  // namespace weft
