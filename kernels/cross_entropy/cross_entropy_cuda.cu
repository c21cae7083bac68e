#include <cmath>

#include "kernels/base/cuda.cuh"
#include "kernels/cross_entropy/cross_entropy.h"

namespace weft {
namespace {

constexpr int kThreads = 256, kBlocksPerProcessor = 4;
constexpr int kAhead = 4;  // packs that a thread has in flight

// Threads that share a row: few where it is short, else a block.
constexpr int kFew = 8;
constexpr int64_t kLongestOfFew = 1024;

// Below every logit, and finite: differences to it are never NaN.
constexpr float kLowest = -1.7e38f;

template <int N, class T>
__device__ Pack<T, N> PackAt(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

// Row of this thread where kLanes threads share one.
template <int kLanes>
__device__ int64_t RowOfThread() {
  return int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
}

struct Score {
  float nll = 0, lse = 0, correct = 0;
};

// Largest of, and sum over, the threads that share a row, in each of them.
template <int kLanes>
__device__ float RowMax(float x) {
#pragma unroll
  for (int offset = 1; offset < min(kLanes, kWarp); offset *= 2)
    x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  if constexpr (kLanes > kWarp) {
    constexpr int kWarps = kLanes / kWarp;
    __shared__ float parts[kWarps];
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = x;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) x = fmaxf(x, parts[w]);
  }
  return x;
}
template <int kLanes>
__device__ float RowSum(float x) {
  if constexpr (kLanes > kWarp) {
    return BlockSum<kLanes>(x);
  } else {
#pragma unroll
    for (int offset = 1; offset < kLanes; offset *= 2) x += __shfl_xor_sync(~0u, x, offset);
    return x;
  }
}

// One pass over a row: each thread keeps the largest logit so far and the sum of e^(x - largest).
// All threads of a warp come here, with rows that have a label and rows that have none.
template <int N, int kLanes, class T>
__device__ Score ScoreOf(const T* row, int V, int label) {
  const bool labelled = label >= 0 && label < V;
  const int columns = labelled ? V : 0;
  const float target = labelled ? ToFloat(row[label]) : 0;
  float largest = kLowest, sum = 0;
  bool beaten = false;  // by a larger logit, or an earlier equal one
  for (int first = threadIdx.x % kLanes * N; first < columns; first += kAhead * kLanes * N) {
    Pack<T, N> ahead[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (const int v = first + k * kLanes * N; v < columns) ahead[k] = PackAt<N>(row + v);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int v = first + k * kLanes * N;
      if (v >= columns) break;
      float x[N];
      Load(ahead[k].at, x);
      float top = x[0];
#pragma unroll
      for (int i = 1; i < N; ++i) top = fmaxf(top, x[i]);
      beaten |= top > target;
      if (top == target && v < label) [[unlikely]] {
#pragma unroll
        for (int i = 0; i < N; ++i) beaten |= x[i] == target && v + i < label;
      }
      const float before = largest;
      largest = fmaxf(largest, top);
      sum *= FastExp(before - largest);
#pragma unroll
      for (int i = 0; i < N; ++i) sum += FastExp(x[i] - largest);
    }
  }
  const float top = RowMax<kLanes>(largest);
  const float lse = top + logf(RowSum<kLanes>(sum * FastExp(largest - top)));
  const bool correct = RowMax<kLanes>(beaten ? 1.f : 0.f) == 0;
  if (labelled) return {lse - target, lse, correct ? 1.f : 0.f};
  const float none = label == kNoLoss ? 0 : nanf("");
  return {none, none, 0};
}

// partial[block] = sums of nll and of lse^2 over its rows.
template <class T, int N, int kLanes>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    Forward(const T* logits, int64_t stride, int64_t rows, int V, const int32_t* labels, float* nll,
            float* lse, float* correct, float2* partial) {
  constexpr int kRows = kThreads / kLanes;
  __shared__ float2 sums[kRows];
  const int64_t n = RowOfThread<kLanes>();
  const Score score = ScoreOf<N, kLanes>(logits + n * stride, V, n < rows ? labels[n] : kNoLoss);
  if (threadIdx.x % kLanes == 0) {
    sums[threadIdx.x / kLanes] = {score.nll, score.lse * score.lse};
    if (n < rows) nll[n] = score.nll, lse[n] = score.lse, correct[n] = score.correct;
  }
  if constexpr (kRows > 1) __syncthreads();
  if (threadIdx.x != 0) return;
  float2 sum = sums[0];
  for (int r = 1; r < kRows; ++r) sum.x += sums[r].x, sum.y += sums[r].y;
  partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    SumLoss(const float2* partial, int parts, const float* denominator, double z_loss,
            bool accumulate, float* loss, float* mean_nll) {
  double nll = 0, squares = 0;
#pragma unroll 8
  for (int p = threadIdx.x; p < parts; p += kThreads) nll += partial[p].x, squares += partial[p].y;
  const double sum = BlockSum<kThreads>(nll + z_loss * squares);
  nll = BlockSum<kThreads>(nll);
  if (threadIdx.x != 0) return;
  PutFloat(*loss, static_cast<float>(sum / *denominator), accumulate);
  PutFloat(*mean_nll, static_cast<float>(nll / *denominator), accumulate);
}

// dlogits may be logits: each thread writes only what it has read itself.
template <class T, int N, int kLanes>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    Backward(const T* logits, int64_t stride, int64_t rows, int V, const int32_t* labels,
             const float* lse, const float* dloss, const float* denominator, float z_loss,
             T* dlogits, int64_t dstride, bool accumulate) {
  const int64_t n = RowOfThread<kLanes>();
  if (n >= rows) return;
  const int lane = threadIdx.x % kLanes, label = labels[n];
  const T* row = logits + n * stride;
  T* out = dlogits + n * dstride;
  if (label == kNoLoss) {
    if (accumulate) return;
    for (int v = lane * N; v < V; v += kLanes * N) Store<N>({}, out + v);
    return;
  }
  const float scale = (dloss ? *dloss : 1) / *denominator, l = lse[n],
              weight = scale * (1 + 2 * z_loss * l);
  for (int first = lane * N; first < V; first += kAhead * kLanes * N) {
    Pack<T, N> ahead[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (const int v = first + k * kLanes * N; v < V) ahead[k] = PackAt<N>(row + v);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int v = first + k * kLanes * N;
      if (v >= V) break;
      float x[N], d[N];
      Load(ahead[k].at, x);
#pragma unroll
      for (int i = 0; i < N; ++i) d[i] = weight * FastExp(x[i] - l);
      if (v <= label && label < v + N) {
#pragma unroll
        for (int i = 0; i < N; ++i) d[i] -= v + i == label ? scale : 0;
      }
      if (accumulate) {
        float before[N];
        Load(out + v, before);
#pragma unroll
        for (int i = 0; i < N; ++i) d[i] += before[i];
      }
      Store(d, out + v);
    }
  }
}

int BlocksFor(const TensorView& logits) {
  return CeilDiv(logits.dim(0), logits.dim(1) <= kLongestOfFew ? kThreads / kFew : 1);
}

// Calls launch.operator()<T, N, lanes of a row>().
template <class F>
void DispatchRows(const TensorView& logits, const TensorView& dlogits, F&& launch) {
  DispatchCuda(logits.dtype(), [&]<class T>() {
    if (logits.dim(0) == 0) return;
    const auto lanes = [&]<int N>() {
      logits.dim(1) <= kLongestOfFew ? launch.template operator()<T, N, kFew>()
                                     : launch.template operator()<T, N, kThreads>();
    };
    constexpr int kN = kPack<T>;
    const bool packable = Packable<T>(logits, kN) && Packable<T>(dlogits, kN);
    packable ? lanes.template operator()<kN>() : lanes.template operator()<1>();
    CheckLaunch("cross_entropy");
  });
}

}  // namespace

void Run(CudaStream& stream, const CrossEntropyFwd& f) {
  const int blocks = BlocksFor(f.logits);
  auto* partial = static_cast<float2*>(stream.Scratch(blocks * sizeof(float2)));
  DispatchRows(f.logits, {}, [&]<class T, int N, int kLanes>() {
    Forward<T, N, kLanes><<<blocks, kThreads, 0, stream.handle()>>>(
        f.logits.Data<const T>(), f.logits.stride(0), f.logits.dim(0),
        static_cast<int>(f.logits.dim(1)), f.labels.Data<const int32_t>(), f.nll.Data<float>(),
        f.lse.Data<float>(), f.correct.Data<float>(), partial);
  });
  SumLoss<<<1, kThreads, 0, stream.handle()>>>(partial, blocks, f.denominator.Data<const float>(),
                                               f.z_loss, f.accumulate, f.loss.Data<float>(),
                                               f.mean_nll.Data<float>());
  CheckLaunch("cross_entropy");
}

void Run(CudaStream& stream, const CrossEntropyBwd& b) {
  const CrossEntropyFwd& f = b.fwd;
  DispatchRows(f.logits, b.dlogits, [&]<class T, int N, int kLanes>() {
    Backward<T, N, kLanes><<<BlocksFor(f.logits), kThreads, 0, stream.handle()>>>(
        f.logits.Data<const T>(), f.logits.stride(0), f.logits.dim(0),
        static_cast<int>(f.logits.dim(1)), f.labels.Data<const int32_t>(),
        f.lse.Data<const float>(), b.dloss.Data<const float>(), f.denominator.Data<const float>(),
        static_cast<float>(f.z_loss), b.dlogits.Data<T>(), b.dlogits.stride(0),
        b.dlogits.accumulate);
  });
}

}  // namespace weft
