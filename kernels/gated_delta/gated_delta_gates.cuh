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

// The first of a lane's two tokens of a chunk.
__device__ inline int FirstToken(const Chunk& c) {
  return c.begin + threadIdx.x % kWarp * 2;
}

// A lane's two tokens, at first as the tensors have them: nothing waits for the loads.
struct GatePair {
  float log_a[2], beta[2];  // or the bits of gate_a and gate_b
  int doc_start[2];

  __device__ GatePair() {}
  __device__ GatePair(const Forward<BF16>& f, const Chunk& c) {
    // Not known to be what they were before: where rows begin is not kept in registers.
    int first = FirstToken(c), row = c.b, head = c.h;
    asm volatile("" : "+r"(first), "+r"(row), "+r"(head));
    const auto load = [&](const auto& from, int count, float otherwise, float(&to)[2]) {
      const auto* at = from(row, first, head);
#pragma unroll
      for (int e = 0; e < 2; ++e)
        to[e] = first + e < count ? Bits(at + e * from.stride[1]) : otherwise;
    };
    if (f.gate_a) {
      load(f.gate_a, f.T, __uint_as_float(0xff80), log_a);  // -infinity: log_a = 0
      load(f.gate_b, f.T, 0, beta);
    } else {
      load(f.log_a, f.log_a_count, 0, log_a);
      load(f.beta, f.beta_count, 1, beta);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      doc_start[e] =
          first + e < f.doc_start_count ? f.doc_start[row * f.doc_stride + first + e] : -1;
    }
  }
  // Makes log_a and beta of projections.
  __device__ void Convert(const Forward<BF16>& f, const HeadGates& head) {
    if (!f.gate_a) return;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      log_a[e] = head.LogA(GateA(e));
      beta[e] = f.beta_scale * DeviceSigmoid(GateB(e));
    }
  }
  // Where they are not converted.
  __device__ float GateA(int e) const { return FromBits(log_a[e]); }
  __device__ float GateB(int e) const { return FromBits(beta[e]); }
  __device__ bool StartsDocument(int e, int t) const { return t > 0 && doc_start[e] == t; }

 private:
  __device__ static float Bits(const float* p) { return *p; }
  __device__ static float Bits(const BF16* p) {
    return __uint_as_float(*reinterpret_cast<const uint16_t*>(p));
  }
  __device__ static float FromBits(float bits) {
    return __uint_as_float(__float_as_uint(bits) << 16);
  }
};

// By one warp, which has loaded and converted the chunk's.
__device__ inline void ScanGates(const Chunk& c, const GatePair& pair, Gates& gates) {
  const int lane = threadIdx.x % kWarp, first = FirstToken(c);
  float log2_sum[2];
  int segment[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    segment[e] = pair.log_a[e] < kForgets || pair.StartsDocument(e, first + e);
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
