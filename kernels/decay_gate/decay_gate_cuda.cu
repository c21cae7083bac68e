#include <climits>

#include "kernels/base/cuda_rows.cuh"
#include "kernels/decay_gate/decay_gate.h"

namespace weft {
namespace {

constexpr int kThreads = 256, kTokensPerThread = 2, kSumWarps = 8;

template <class T>
struct Arguments {
  explicit Arguments(const DecayGateFwd& f)
      : a(f.a.As<T, 3>()),
        b(f.b.As<T, 3>()),
        log_a(f.log_a.As<float, 3>()),
        beta(f.beta.As<float, 3>()),
        a_log(f.a_log.Data<float>()),
        dt_bias(f.dt_bias.Data<float>()),
        beta_scale(static_cast<float>(f.beta_scale)),
        count(static_cast<int>(f.a.dim(0) * f.a.dim(1))),
        L(static_cast<int>(f.a.dim(1))),
        H(static_cast<int>(f.a.dim(2))) {}
  View3<T> a, b;
  View3<float> log_a, beta;
  const float *a_log, *dt_bias;
  float beta_scale;
  int count, L, H;  // count = B L
  // backward
  View3<float> dlog_a, dbeta;
  View3<T> da, db;
  bool accumulate_da = false, accumulate_db = false;
  float* partial = nullptr;  // [gridDim.x, 2, H]: of da_log and ddt_bias
};

// A block is some heads wide and `tokens` deep: a thread keeps its head h and calls body(b, t) for
// some tokens.
template <class T, class Body>
__device__ void ForTokens(const Arguments<T>& g, int heads, Body&& body) {
  const int tokens = blockDim.x / heads;
  const int first = blockIdx.x * tokens * kTokensPerThread + threadIdx.x / heads;
#pragma unroll
  for (int k = 0; k < kTokensPerThread; ++k) {
    const int i = first + k * tokens;
    if (i < g.count) body(i / g.L, i % g.L);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    Forward(const __grid_constant__ Arguments<T> g, int heads) {
  const int h = blockIdx.y * heads + threadIdx.x % heads;
  if (h >= g.H) return;
  const float rate = expf(g.a_log[h]), bias = g.dt_bias[h];
  ForTokens(g, heads, [&](int b, int t) {
    const float z = ToFloat(g.a(b, t, h)) + bias;
    g.log_a(b, t, h) = -rate * (fmaxf(z, 0) + log1pf(expf(-fabsf(z))));
    g.beta(b, t, h) = g.beta_scale / (1 + expf(-ToFloat(g.b(b, t, h))));
  });
}

// With z = a + dt_bias:  da = ddt_bias = -dlog_a exp(a_log) sigmoid(z),  da_log = dlog_a log_a,
// db = dbeta beta (1 - sigmoid(b)), where 1 - sigmoid(b) = sigmoid(-b) keeps its accuracy for
// large b.
template <class T>
__global__ void __launch_bounds__(kThreads)
    Backward(const __grid_constant__ Arguments<T> g, int heads) {
  StartDependents();
  const int h = blockIdx.y * heads + threadIdx.x % heads;
  float2 sum = {0, 0};
  if (h < g.H) {
    const float rate = expf(g.a_log[h]), bias = g.dt_bias[h];
    ForTokens(g, heads, [&](int b, int t) {
      const float dlog_a = g.dlog_a(b, t, h), z = ToFloat(g.a(b, t, h)) + bias;
      const float dz = -dlog_a * rate / (1 + expf(-z));
      const float dsigmoid = g.dbeta(b, t, h) * g.beta(b, t, h);
      sum.x += dlog_a * g.log_a(b, t, h);
      sum.y += dz;
      PutFloat(g.da(b, t, h), dz, g.accumulate_da);
      PutFloat(g.db(b, t, h), dsigmoid / (1 + expf(ToFloat(g.b(b, t, h)))), g.accumulate_db);
    });
  }
  __shared__ float2 sums[kThreads];
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= heads || h >= g.H) return;
  for (int i = threadIdx.x + heads; i < blockDim.x; i += heads)
    sum.x += sums[i].x, sum.y += sums[i].y;
  g.partial[(2 * blockIdx.x) * g.H + h] = sum.x;
  g.partial[(2 * blockIdx.x + 1) * g.H + h] = sum.y;
}

// One warp for each number of da_log and ddt_bias.
__global__ void __launch_bounds__(kSumWarps* kWarp)
    SumPartial(const float* partial, int parts, int H, float* da_log, bool accumulate_da_log,
               float* ddt_bias, bool accumulate_ddt_bias) {
  const int i = blockIdx.x * kSumWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (i >= 2 * H) return;
  float sum = 0;
  AwaitKernelBefore();
#pragma unroll 4
  for (int p = lane; p < parts; p += kWarp) sum += partial[int64_t{p} * 2 * H + i];
  sum = WarpSum(sum);
  if (lane != 0) return;
  if (i < H) {
    PutFloat(da_log[i], sum, accumulate_da_log);
  } else {
    PutFloat(ddt_bias[i - H], sum, accumulate_ddt_bias);
  }
}

// Heads of a block, its threads, and the grid.
struct Shape {
  explicit Shape(const TensorView& a)
      : heads(static_cast<int>(std::min<int64_t>(a.dim(2), kThreads))),
        threads(kThreads / heads * heads),
        grid(CeilDiv(a.dim(0) * a.dim(1), int64_t{threads / heads} * kTokensPerThread),
             CeilDiv(a.dim(2), heads)) {}
  int heads, threads;
  dim3 grid;
};

void CheckTaken(const DecayGateFwd& f) {
  Check(f.a.size() <= INT_MAX / 2, "decay_gate: a ", f.a.ToString(), " is too large for a GPU");
  CheckDense("decay_gate", "a_log", f.a_log);
  CheckDense("decay_gate", "dt_bias", f.dt_bias);
}

}  // namespace

void Run(CudaStream& stream, const DecayGateFwd& f) {
  CheckTaken(f);
  if (f.a.size() == 0) return;
  DispatchCuda(f.a.dtype(), [&]<class T>() {
    const Shape shape(f.a);
    Forward<T><<<shape.grid, shape.threads, 0, stream.handle()>>>(Arguments<T>(f), shape.heads);
  });
  CheckLaunch("decay_gate");
}

void Run(CudaStream& stream, const DecayGateBwd& d) {
  const DecayGateFwd& f = d.fwd;
  CheckTaken(f);
  CheckDense("decay_gate", "da_log", d.da_log);
  CheckDense("decay_gate", "ddt_bias", d.ddt_bias);
  const int H = static_cast<int>(f.a.dim(2));
  if (H == 0) return;
  const Shape shape(f.a);
  const int parts = static_cast<int>(shape.grid.x);
  auto* partial = static_cast<float*>(stream.Scratch(int64_t{parts} * 2 * H * 4));
  DispatchCuda(f.a.dtype(), [&]<class T>() {
    if (parts == 0) return;
    Arguments<T> g(f);
    g.dlog_a = View3<float>(d.dlog_a.As<float, 3>());
    g.dbeta = View3<float>(d.dbeta.As<float, 3>());
    g.da = View3<T>(d.da.As<T, 3>());
    g.db = View3<T>(d.db.As<T, 3>());
    g.accumulate_da = d.da.accumulate;
    g.accumulate_db = d.db.accumulate;
    g.partial = partial;
    Backward<T><<<shape.grid, shape.threads, 0, stream.handle()>>>(g, shape.heads);
    CheckLaunch("decay_gate");
  });
  LaunchDependent(stream, "decay_gate", SumPartial, CeilDiv(2 * H, kSumWarps), kSumWarps * kWarp,
                  partial, parts, H, d.da_log.Data<float>(), d.da_log.accumulate,
                  d.ddt_bias.Data<float>(), d.ddt_bias.accumulate);
}

}  // namespace weft
