#pragma once
// The decays of a chunk of tokens, for the tensor core kernels.

#include "kernels/gated_delta/gated_delta_cuda.cuh"
#include "kernels/gated_delta/gated_delta_mma.cuh"

namespace weft::gated_delta {

inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kForgets = -87;  // exp of less is no normal number: the past is forgotten

// A boundary is a token whose past is nothing to it: it starts a document or forgets all. Decays
// across a boundary are 0 and the sums of logarithms leave it out, so that they stay small.
struct alignas(16) Gates {
  float from_start[kC];  // decay from the state before the chunk to token i
  float to_end[kC];      // decay from token j to the state after the chunk
  float log2_sum[kC];    // (log_a_1 + ... + log_a_i) / log 2
  float beta[kC];
  int segment[kC];  // number of boundaries up to token i

  __device__ float Whole() const { return from_start[kC - 1]; }
};

// Tokens 2 lane and 2 lane + 1 of a chunk, as the tensors have them: nothing waits for the loads.
struct GatePair {
  int token;
  float log_a[2], beta[2];
  int doc_start[2];

  __device__ GatePair() {}
  __device__ GatePair(const Forward<BF16>& f, const Chunk& c)
      : token(c.begin + threadIdx.x % kWarp * 2) {
    const float *first_log_a = f.log_a(c.b, token, c.h), *first_beta = f.beta(c.b, token, c.h);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      log_a[e] = token + e < f.log_a_count ? first_log_a[e * f.log_a.stride[1]] : 0;
      beta[e] = token + e < f.beta_count ? first_beta[e * f.beta.stride[1]] : 1;
      doc_start[e] =
          token + e < f.doc_start_count ? f.doc_start[c.b * f.doc_stride + token + e] : -1;
    }
  }
};

// By one warp.
__device__ inline void ScanGates(const GatePair& pair, Gates& gates) {
  const int lane = threadIdx.x % kWarp;
  float log2_sum[2];
  int segment[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int t = pair.token + e;
    segment[e] = pair.log_a[e] < kForgets || (t > 0 && pair.doc_start[e] == t);
    log2_sum[e] = segment[e] ? 0 : pair.log_a[e] * kLog2E;
  }
  float sum = log2_sum[0] + log2_sum[1];
  int boundaries = segment[0] + segment[1];
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const float more = __shfl_up_sync(~0u, sum, offset);
    const int more_boundaries = __shfl_up_sync(~0u, boundaries, offset);
    if (lane >= offset) sum += more, boundaries += more_boundaries;
  }
  const float last = __shfl_sync(~0u, sum, kWarp - 1);
  const int last_segment = __shfl_sync(~0u, boundaries, kWarp - 1);
  log2_sum[0] = sum - log2_sum[1];
  log2_sum[1] = sum;
  segment[0] = boundaries - segment[1];
  segment[1] = boundaries;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int i = 2 * lane + e;
    gates.from_start[i] = segment[e] == 0 ? FastExp2(log2_sum[e]) : 0;
    gates.to_end[i] = segment[e] == last_segment ? FastExp2(last - log2_sum[e]) : 0;
    gates.log2_sum[i] = log2_sum[e];
    gates.beta[i] = fmaxf(pair.beta[e], kLeastBeta);
    gates.segment[i] = segment[e];
  }
}

// decay(i, j) for j <= i, else 0: block (row, column) of 16 x 16 tokens.
__device__ inline void Decays(const Gates& gates, int row, int column, int lane, Tile& decay) {
  const int i0 = 16 * row + lane / 4, j0 = 16 * column + 2 * (lane % 4);
  float log2_sum[2];
  int segment[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    log2_sum[r] = gates.log2_sum[i0 + 8 * r];
    segment[r] = gates.segment[i0 + 8 * r];
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const int r = e % 4 / 2, i = i0 + 8 * r, j = j0 + 8 * (e / 4) + e % 2;
    const float x = FastExp2(log2_sum[r] - gates.log2_sum[j]);
    decay[e / 4][e % 4] = j <= i && gates.segment[j] == segment[r] ? x : 0;
  }
}

// Of the columns of a tile, which are tokens: the numbers for this lane's pair in one half.
__device__ inline float2 TokenPair(const float* x, int half) {
  return *reinterpret_cast<const float2*>(x + 8 * half + 2 * (threadIdx.x % 4));
}

}  // namespace weft::gated_delta
