// The recurrence itself: a block holds 32 columns of one head's state in registers, the rows dealt
// to its warps.

#include "kernels/gated_delta/gated_delta_cuda.cuh"

namespace weft::gated_delta {
namespace {

constexpr int kWarps = 8;

// x summed over the block's warps, lane by lane.
__device__ float SumOverWarps(float (&partial)[kWarps][kWarp], float x) {
  partial[threadIdx.y][threadIdx.x] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += partial[w][threadIdx.x];
  return sum;
}

template <class T, int kRows>
__global__ void __launch_bounds__(kWarps* kWarp) Recurrent(const Forward<T> f) {
  __shared__ float read[kWarps][kWarp], out[kWarps][kWarp];
  const int b = blockIdx.x / f.H, h = blockIdx.x % f.H;
  const int v = blockIdx.y * kWarp + threadIdx.x;
  const bool valid = v < f.V;
  float S[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int k = r * kWarps + threadIdx.y;
    S[r] = f.initial && valid && k < f.K ? f.initial(b, h, k)[v] : 0;
  }
  for (int t = 0; t < f.T; ++t) {
    const float a = f.StartsDocument(b, t) ? 0 : expf(f.LogA(b, t, h));
    float key[kRows], query[kRows], sum = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int k = r * kWarps + threadIdx.y;
      key[r] = k < f.K ? ToFloat(f.k(b, t, h)[k]) : 0;
      query[r] = k < f.K ? ToFloat(f.q(b, t, h)[k]) : 0;
      S[r] *= a;
      sum += S[r] * key[r];
    }
    const float value = valid ? ToFloat(f.v(b, t, h)[v]) : 0;
    const float u = f.Beta(b, t, h) * (value - f.erase * SumOverWarps(read, sum));
    sum = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      S[r] += key[r] * u;
      sum += S[r] * query[r];
    }
    const float y = f.scale * SumOverWarps(out, sum);
    if (valid && threadIdx.y == 0) f.y(b, t, h)[v] = FromFloat<T>(y);
  }
  if (!f.final_state || !valid) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int k = r * kWarps + threadIdx.y;
    if (k < f.K) f.final_state(b, h, k)[v] = S[r];
  }
}

}  // namespace

void RunRecurrent(CudaStream& stream, const GatedDeltaFwd& op) {
  DispatchCuda(op.q.dtype(), [&]<class T>() {
    const Forward<T> f(op);
    const dim3 grid(f.heads(), CeilDiv(f.V, kWarp)), block(kWarp, kWarps);
    const auto launch = [&](auto kernel) { kernel<<<grid, block, 0, stream.handle()>>>(f); };
    if (f.K <= 64)
      launch(Recurrent<T, 8>);
    else if (f.K <= 128)
      launch(Recurrent<T, 16>);
    else
      launch(Recurrent<T, 32>);
    CheckLaunch("gated_delta");
  });
}

}  // namespace weft::gated_delta
