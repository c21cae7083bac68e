#pragma once
// What the kernels of the backward on sm_90a share: HopperGates scans the gates of all chunks;
// HopperStateGradients goes through sequences from the end, as the forward does from the beginning,
// and leaves dV and dS; HopperKeyGradients takes chunks in any order and has the gradients of
// queries, keys and gates.

#include "kernels/gated_delta/gated_delta_hopper.cuh"

namespace weft::gated_delta {

// What the first two leave to the last.
struct alignas(128) Saved {  // of a chunk
  BF16 x[2][kSquare];        // (I + N)^-1, high and low part
  Gates gates;
};
struct Between {
  Saved* saved;   // [B, chunks, H]
  BF16* dstates;  // [B, chunks, H, V, K]  gradient of S^T after the chunk
  TensorView dv;  // [B, T, H, V]
  GateSums sums;
};
void RunKeyGradients(CudaStream&, const GatedDeltaBwd&, const Between&);

// c (+)= A B, one step of depth 16.
template <int kN, bool kTransposedA, bool kTransposedB>
__device__ inline void Multiply(float (&c)[kN / 8][4], uint64_t a, uint64_t b, bool add = true) {
  Products<kN>::template Step<kTransposedA, kTransposedB>(c, a, b, add);
}
template <int kN, bool kTransposedB>
__device__ inline void Multiply(float (&c)[kN / 8][4], const uint32_t (&a)[4], uint64_t b,
                                bool add = true) {
  Products<kN>::template Step<kTransposedB>(c, a, b, add);
}

// Blocks of 16 x 16 as left operands have them: operand (i, j) is panel (row + i, column + j), or
// transposed, (row + j, column + i).
__device__ inline void LoadTransposed(uint32_t (&x)[4], const BF16* panel, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  const Fragment f = LoadMatrixTransposed(
      panel + InPanel(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = f.at[i];
}
__device__ inline void StoreTransposed(const uint32_t (&x)[4], BF16* panel, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  StoreMatrixTransposed({x[0], x[1], x[2], x[3]},
                        panel + InPanel(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
}

// Of columns that are tokens: the numbers for this lane's columns of block j.
__device__ inline float2 Tokens(const float* by, int j) {
  return *reinterpret_cast<const float2*>(by + 8 * j + threadIdx.x % 4 * 2);
}

}  // namespace weft::gated_delta
