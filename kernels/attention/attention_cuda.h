#pragma once
// The kernels behind Run(CudaStream&, ...) of attention. Run takes the first that applies; one that
// does not returns false and launches nothing.

#include "kernels/attention/attention.h"

namespace weft {

#ifdef WEFT_CUDNN
// Where CudaStream::deterministic is false: the backward's bits differ from run to run.
bool CudnnAttention(CudaStream&, const AttentionFwd&);
bool CudnnAttention(CudaStream&, const AttentionBwd&);
#endif
// bf16, K = V = 64 or 128, rows aligned to 16 bytes: wgmma, on sm_90 alone.
bool HopperAttention(CudaStream&, const AttentionFwd&);
bool HopperAttention(CudaStream&, const AttentionBwd&);
// bf16, K and V multiples of 8 up to 256, rows aligned to 16 bytes: mma.sync, from sm_80 on.
bool TensorCoreAttention(CudaStream&, const AttentionFwd&);
bool TensorCoreAttention(CudaStream&, const AttentionBwd&);

// What every backward needs first, in the stream's scratch.
struct AttentionRows {
  // [B * H, padded]: lse / scale and <dy, y>; infinity and 0 behind the last query. The weights are
  // e^(scale (<q, k> - shift)), and the gradients of scores are weight * (<dy, v> - delta).
  float *shift, *delta;
  int64_t padded;   // Tq rounded up to 128
  int* last_query;  // [B, key tiles]: the last query that sees a key of the tile, or one before
  int* taken;       // [2]: zeros, for kernels to count with
};
AttentionRows PrepareBackward(CudaStream&, const AttentionBwd&, int key_tile);

}  // namespace weft
