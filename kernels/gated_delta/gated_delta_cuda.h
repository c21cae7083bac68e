#pragma once
// The kernels behind Run(CudaStream&, ...) of gated_delta. All of them save `states` as rows of
// S^T, [V, K], so that any backward follows any forward.

#include "kernels/gated_delta/gated_delta.h"

namespace weft::gated_delta {

// Token by token, without saving states: for decoding. K up to 256.
void RunRecurrent(CudaStream&, const GatedDeltaFwd&);

// Chunks of 64 tokens on tensor cores, from sm_80 on: bf16, K and V multiples of 16 up to 256, rows
// aligned to 16 bytes.
bool TensorCoresFit(int64_t K);  // into the current device's shared memory
void RunTensorCores(CudaStream&, const GatedDeltaFwd&);
void RunTensorCores(CudaStream&, const GatedDeltaBwd&);

// Chunks of 64 tokens on sm_90a: bf16, K = 48, 64, 96 or 128, V a multiple of 16 up to 256, rows
// aligned to 16 bytes. A block goes through a sequence with up to 128 value columns of one head, in
// the backward with up to HopperValues(K); where those blocks are too few, through one of so many
// segments of it. The backward wants `states` without gaps.
inline int64_t HopperValues(int64_t K) { return K == 96 ? 192 : 128; }
void RunHopper(CudaStream&, const GatedDeltaFwd&, int segments);
void RunHopper(CudaStream&, const GatedDeltaBwd&, int segments);

// Chunks of 64 tokens in f32 arithmetic: any type and any size.
void RunF32(CudaStream&, const GatedDeltaFwd&);
void RunF32(CudaStream&, const GatedDeltaBwd&);

}  // namespace weft::gated_delta
