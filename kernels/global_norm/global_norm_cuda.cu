#include "kernels/base/cuda.cuh"
#include "kernels/global_norm/global_norm.h"

namespace weft {
namespace {

constexpr int kThreads = 256, kBlocksPerProcessor = 8;
constexpr int kAhead = 4;  // packs that a thread has in flight

template <int N>
__device__ double SumOfSquares(const float (&x)[N]) {
  double sum = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

// partial[block] = sum of x^2 over the packs that the block meets with strides of the grid.
template <int N>
__global__ void __launch_bounds__(kThreads) Squares(const float* x, int64_t n, double* partial) {
  const int64_t stride = int64_t{gridDim.x} * kThreads * N;
  int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  double sum = 0;
  for (; i + (kAhead - 1) * stride + N <= n; i += kAhead * stride) {
    float pack[kAhead][N];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) Load(x + i + k * stride, pack[k]);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) sum += SumOfSquares(pack[k]);
  }
  for (; i < n; i += stride) {
    for (int64_t j = i; j < min(i + N, n); ++j) sum += SumOfSquares<1>({x[j]});
  }
  sum = BlockSum<kThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    Finish(const double* partial, int blocks, double max_norm, float* norm, float* scale) {
  double sum = 0;
  for (int i = threadIdx.x; i < blocks; i += kThreads) sum += partial[i];
  sum = BlockSum<kThreads>(sum);
  if (threadIdx.x != 0) return;
  const double length = sqrt(sum), factor = max_norm / (length + 1e-6);
  *norm = static_cast<float>(length);
  const double clipped = max_norm <= 0 || factor > 1 ? 1 : factor;
  *scale = isfinite(length) ? static_cast<float>(clipped) : nanf("");
}

template <int N>
void Forward(CudaStream& stream, const GlobalNormFwd& f) {
  const int64_t n = f.x.dim(0);
  const int blocks = std::clamp(CeilDiv(n, kThreads * N * kAhead), 1,
                                kBlocksPerProcessor * stream.multiprocessors());
  auto* partial = static_cast<double*>(stream.Scratch(blocks * sizeof(double)));
  Squares<N><<<blocks, kThreads, 0, stream.handle()>>>(f.x.Data<const float>(), n, partial);
  CheckLaunch("global_norm");
  Finish<<<1, kThreads, 0, stream.handle()>>>(partial, blocks, f.max_norm, f.norm.Data<float>(),
                                              f.scale.Data<float>());
  CheckLaunch("global_norm");
}

}  // namespace

void Run(CudaStream& stream, const GlobalNormFwd& f) {
  for (const TensorView* v : {&f.x, &f.norm, &f.scale})
    CheckDType("global_norm", v->name(), *v, DType::kF32);
  constexpr int kN = kPack<float>;
  const bool aligned = reinterpret_cast<uintptr_t>(f.x.data()) % (kN * sizeof(float)) == 0;
  aligned ? Forward<kN>(stream, f) : Forward<1>(stream, f);
}

}  // namespace weft
