#include <cmath>

#include "kernels/base/cuda.cuh"
#include "kernels/cross_entropy/cross_entropy.h"

namespace weft {
namespace {

constexpr int kThreads = 256;
constexpr int kAhead = 4;             // packs that a thread has in flight
constexpr int kLongestOfWarp = 1024;  // a warp takes a row of up to this many logits, else a block
constexpr int kSumThreads = 1024;

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

// One pass over a row: each thread keeps the largest logit x so far and the sum of e^(x - largest).
template <class T, int N, int kLanes>
__global__ void __launch_bounds__(kThreads, 4)
    Forward(const T* logits, int64_t stride, int64_t rows, int V, const int32_t* labels, float* nll,
            float* lse, float* correct) {
  const int64_t n = RowOfThread<kLanes>();
  if (n >= rows) return;
  const int lane = threadIdx.x % kLanes, label = labels[n];
  if (label < 0 || label >= V) {
    if (lane == 0) {
      nll[n] = lse[n] = label == kNoLoss ? 0 : nanf("");
      correct[n] = 0;
    }
    return;
  }
  const T* row = logits + n * stride;
  const float target = ToFloat(row[label]);
  float largest = kLowest, sum = 0;
  bool beaten = false;  // by a larger logit, or an earlier equal one
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
      float x[N];
      Load(ahead[k].at, x);
      float top = x[0];
#pragma unroll
      for (int i = 1; i < N; ++i) top = fmaxf(top, x[i]);
      if (top >= target && !beaten) {
#pragma unroll
        for (int i = 0; i < N; ++i) beaten |= x[i] > target || (x[i] == target && v + i < label);
      }
      const float before = largest;
      largest = fmaxf(largest, top);
      sum *= FastExp(before - largest);
#pragma unroll
      for (int i = 0; i < N; ++i) sum += FastExp(x[i] - largest);
    }
  }
  float top = WarpMax(largest);
  sum = WarpSum(sum * FastExp(largest - top));
  if constexpr (kLanes == kWarp) {
    beaten = __any_sync(~0u, beaten);
  } else {
    constexpr int kWarps = kLanes / kWarp;
    __shared__ float tops[kWarps], sums[kWarps];
    if (lane % kWarp == 0) tops[lane / kWarp] = top, sums[lane / kWarp] = sum;
    beaten = __syncthreads_or(beaten);
    if (lane >= kWarp) return;
    largest = lane < kWarps ? tops[lane] : kLowest;
    top = WarpMax(largest);
    sum = WarpSum(lane < kWarps ? sums[lane] * FastExp(largest - top) : 0.f);
  }
  if (lane != 0) return;
  lse[n] = top + logf(sum);
  nll[n] = lse[n] - target;
  correct[n] = beaten ? 0 : 1;
}

__global__ void __launch_bounds__(kSumThreads)
    CountLabels(const int32_t* labels, int64_t rows, float* count) {
  int labelled = 0;
  for (int64_t n = threadIdx.x; n < rows; n += kSumThreads) labelled += labels[n] != kNoLoss;
  labelled = BlockSum<kSumThreads>(labelled);
  if (threadIdx.x == 0) *count = static_cast<float>(max(labelled, 1));
}

template <int N>
__global__ void __launch_bounds__(kSumThreads)
    SumLoss(const float* nll, const float* lse, int64_t rows, const float* denominator,
            double z_loss, bool accumulate, float* loss, float* mean_nll) {
  double nlls = 0, squares = 0;
#pragma unroll 4
  for (int64_t n = threadIdx.x * N; n < rows; n += kSumThreads * N) {
    float a[N], b[N];
    Load(nll + n, a);
    Load(lse + n, b);
#pragma unroll
    for (int i = 0; i < N; ++i) nlls += a[i], squares += static_cast<double>(b[i]) * b[i];
  }
  nlls = BlockSum<kSumThreads>(nlls);
  squares = BlockSum<kSumThreads>(squares);
  if (threadIdx.x != 0) return;
  PutFloat(*loss, static_cast<float>((nlls + z_loss * squares) / *denominator), accumulate);
  PutFloat(*mean_nll, static_cast<float>(nlls / *denominator), accumulate);
}

// dlogits may be logits: each thread writes only what it has read itself.
template <class T, int N, int kLanes>
__global__ void __launch_bounds__(kThreads, 4)
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
  const float scale = (dloss ? *dloss : 1) / *denominator, l = lse[n], weight = scale * (1 + 2 * z_loss * l);
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

// The denominator, counted into scratch where none is given.
const float* Denominator(CudaStream& stream, const CrossEntropyFwd& f) {
  if (f.denominator.defined()) return f.denominator.Data<const float>();
  auto* count = static_cast<float*>(stream.Scratch(sizeof(float)));
  CountLabels<<<1, kSumThreads, 0, stream.handle()>>>(f.labels.Data<const int32_t>(),
                                                      f.labels.dim(0), count);
  CheckLaunch("cross_entropy");
  return count;
}

// Calls launch.operator()<T, N, lanes of a row>(blocks).
template <class F>
void DispatchRows(const TensorView& logits, const TensorView& dlogits, F&& launch) {
  DispatchCuda(logits.dtype(), [&]<class T>() {
    const int64_t rows = logits.dim(0);
    if (rows == 0) return;
    const auto lanes = [&]<int N>() {
      if (logits.dim(1) <= kLongestOfWarp) {
        launch.template operator()<T, N, kWarp>(CeilDiv(rows, kThreads / kWarp));
      } else {
        launch.template operator()<T, N, kThreads>(CeilDiv(rows, 1));
      }
    };
    constexpr int kN = kPack<T>;
    const bool packable = Packable<T>(logits, kN) && Packable<T>(dlogits, kN);
    packable ? lanes.template operator()<kN>() : lanes.template operator()<1>();
    CheckLaunch("cross_entropy");
  });
}

}  // namespace

void Run(CudaStream& stream, const CrossEntropyFwd& f) {
  const int64_t rows = f.logits.dim(0);
  DispatchRows(f.logits, {}, [&]<class T, int N, int kLanes>(int blocks) {
    Forward<T, N, kLanes><<<blocks, kThreads, 0, stream.handle()>>>(
        f.logits.Data<const T>(), f.logits.stride(0), rows, static_cast<int>(f.logits.dim(1)),
        f.labels.Data<const int32_t>(), f.nll.Data<float>(), f.lse.Data<float>(),
        f.correct.Data<float>());
  });
  const float* denominator = Denominator(stream, f);
  constexpr int kN = kPack<float>;
  const auto sum =
      Packable<float>(f.nll, kN) && Packable<float>(f.lse, kN) ? SumLoss<kN> : SumLoss<1>;
  sum<<<1, kSumThreads, 0, stream.handle()>>>(f.nll.Data<const float>(), f.lse.Data<const float>(),
                                              rows, denominator, f.z_loss, f.accumulate,
                                              f.loss.Data<float>(), f.mean_nll.Data<float>());
  CheckLaunch("cross_entropy");
}

void Run(CudaStream& stream, const CrossEntropyBwd& b) {
  const CrossEntropyFwd& f = b.fwd;
  const float* denominator = Denominator(stream, f);
  DispatchRows(f.logits, b.dlogits, [&]<class T, int N, int kLanes>(int blocks) {
    Backward<T, N, kLanes><<<blocks, kThreads, 0, stream.handle()>>>(
        f.logits.Data<const T>(), f.logits.stride(0), f.logits.dim(0),
        static_cast<int>(f.logits.dim(1)), f.labels.Data<const int32_t>(),
        f.lse.Data<const float>(), b.dloss.Data<const float>(), denominator,
        static_cast<float>(f.z_loss), b.dlogits.Data<T>(), b.dlogits.stride(0),
        b.dlogits.accumulate);
  });
}

}  // namespace weft
