#include "kernels/base/cuda.cuh"
#include "kernels/random_fill/random_fill.h"

namespace weft {
namespace {

constexpr int kThreads = 256, kElementsPerThread = 4;

__global__ void __launch_bounds__(kThreads)
    Fill(const RandomValues values, float* y, BF16* copy, int64_t n) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += stride) {
    const float value = static_cast<float>(values(static_cast<uint32_t>(i)));
    y[i] = value;
    if (copy) copy[i] = FromFloat<BF16>(value);
  }
}

}  // namespace

void Run(CudaStream& stream, const RandomFill& f) {
  const int64_t n = f.y.dim(0);
  if (n == 0) return;
  Fill<<<CeilDiv(n, kThreads * kElementsPerThread), kThreads, 0, stream.handle()>>>(
      f.values, f.y.As<float, 1>().data, f.copy.As<BF16, 1>().data, n);
  CheckLaunch("random_fill");
}

}  // namespace weft
