#include "kernels/adamw/adamw.h"
#include "kernels/base/cuda.cuh"

namespace weft {
namespace {

constexpr int kThreads = 256;

struct Arguments {
  float *p, *m, *v;
  const float *g, *scale, *schedule;
  BF16* copy;
  int64_t n, decayed;
  float beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay;
};

// lr m^ / (sqrt(v^) + eps) = rate m / (sqrt(v) + floor)
//   where rate = lr sqrt(c2) / c1 and floor = eps sqrt(c2).
template <int N>
__device__ void Update(const Arguments& a, int64_t first) {
  float p[N], g[N], m[N], v[N];
  Load(a.p + first, p);
  Load(a.g + first, g);
  Load(a.m + first, m);
  Load(a.v + first, v);
  const float scale = a.scale ? *a.scale : 1;
  if (isnan(scale)) return;
  const float lr = a.schedule[0], c1 = a.schedule[1], root = sqrtf(a.schedule[2]);
  const float rate = lr * root / c1, floor = a.eps * root, keep = 1 - lr * a.weight_decay;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float gradient = scale * g[i];
    m[i] = a.beta1 * m[i] + a.one_minus_beta1 * gradient;
    v[i] = a.beta2 * v[i] + a.one_minus_beta2 * (gradient * gradient);
    const float kept = first + i < a.decayed ? keep * p[i] : p[i];
    p[i] = kept - rate * m[i] / (sqrtf(v[i]) + floor);
  }
  Store(p, a.p + first);
  Store(m, a.m + first);
  Store(v, a.v + first);
  if (a.copy) Store(p, a.copy + first);
}

template <int N>
__global__ void __launch_bounds__(kThreads) Step(const Arguments a) {
  int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i + N <= a.n) {
    Update<N>(a, i);
  } else {
#pragma unroll 1
    for (; i < a.n; ++i) Update<1>(a, i);
  }
}

bool Aligned(const TensorView& view, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(view.data()) % bytes == 0;
}

}  // namespace

void Run(CudaStream& stream, const AdamwStep& s) {
  CheckDType("adamw", "p", s.p, DType::kF32);
  Arguments a{.p = s.p.Data<float>(), .m = s.m.Data<float>(), .v = s.v.Data<float>()};
  a.g = s.g.Data<const float>();
  a.scale = s.scale.Data<const float>();
  a.schedule = s.schedule.Data<const float>();
  a.copy = s.copy.Data<BF16>();
  a.n = s.p.dim(0);
  a.decayed = s.decayed;
  a.beta1 = static_cast<float>(s.beta1);
  a.one_minus_beta1 = static_cast<float>(1 - s.beta1);
  a.beta2 = static_cast<float>(s.beta2);
  a.one_minus_beta2 = static_cast<float>(1 - s.beta2);
  a.eps = static_cast<float>(s.eps);
  a.weight_decay = static_cast<float>(s.weight_decay);
  if (a.n == 0) return;
  constexpr int kN = kPack<float>;
  if (Aligned(s.p, 16) && Aligned(s.g, 16) && Aligned(s.m, 16) && Aligned(s.v, 16) &&
      Aligned(s.copy, 8)) {
    Step<kN><<<CeilDiv(a.n, kThreads * kN), kThreads, 0, stream.handle()>>>(a);
  } else {
    Step<1><<<CeilDiv(a.n, kThreads), kThreads, 0, stream.handle()>>>(a);
  }
  CheckLaunch("adamw");
}

}  // namespace weft
