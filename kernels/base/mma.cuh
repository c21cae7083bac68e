#pragma once
// A matrix as tensor cores hold it in the registers of a warp, which has 16 of its rows: a lane has
// rows lane / 4 and lane / 4 + 8, and of every 8 columns those at 2 (lane % 4) and the next. A sum:
//   x[j][2 r + e] = X(lane / 4 + 8 r, 8 j + 2 (lane % 4) + e)

#include "kernels/base/cuda.cuh"

namespace weft {

__device__ inline uint32_t PackPair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ inline float2 UnpackPair(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

// A sum as the left operand of the next product, 16 columns at a time: those from 16 k on, or all.
template <int kN>
__device__ inline void PackLeft(const float (&x)[kN][4], int k, uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float(&from)[4] = x[2 * k + i / 2];
    a[i] = PackPair(from[i % 2 * 2], from[i % 2 * 2 + 1]);
  }
}
template <int kN>
__device__ inline void PackLeft(const float (&x)[kN][4], uint32_t (&a)[kN / 2][4]) {
#pragma unroll
  for (int k = 0; k < kN / 2; ++k) PackLeft(x, k, a[k]);
}

// Over the four lanes that have a row.
__device__ inline float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float QuadSum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

}  // namespace weft
