#include "kernels/base/cuda_rows.cuh"
#include "kernels/elementary/elementary.h"
#include "kernels/swiglu/swiglu.h"

namespace weft {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(kRowThreads)
    Forward(Rows<const T> gate_up, Rows<T> y, int64_t rows, int F, int lanes) {
  const int64_t r = int64_t{blockIdx.x} * (blockDim.x / lanes) + threadIdx.x / lanes;
  if (r >= rows) return;
  for (int c = threadIdx.x % lanes * N; c < F; c += lanes * N) {
    float gate[N], up[N];
    Load<N>(gate_up(r) + c, gate);
    Load<N>(gate_up(r) + F + c, up);
#pragma unroll
    for (int k = 0; k < N; ++k) up[k] *= gate[k] * DeviceSigmoid(gate[k]);
    Store<N>(up, y(r) + c);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kRowThreads)
    Backward(Rows<const T> gate_up, Rows<const T> dy, Rows<T> dgate_up, Rows<T> y, int64_t rows,
             int F, int lanes, bool accumulate) {
  const int64_t r = int64_t{blockIdx.x} * (blockDim.x / lanes) + threadIdx.x / lanes;
  if (r >= rows) return;
  for (int c = threadIdx.x % lanes * N; c < F; c += lanes * N) {
    float gate[N], up[N], up_gradient[N], dgate[N];
    Load<N>(gate_up(r) + c, gate);
    Load<N>(gate_up(r) + F + c, up);
    Load<N>(dy(r) + c, up_gradient);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float s = DeviceSigmoid(gate[k]), silu = gate[k] * s;
      dgate[k] = up_gradient[k] * up[k] * (s + silu * (1 - s));
      up_gradient[k] *= silu;
      up[k] *= silu;
    }
    PutPack(dgate, dgate_up(r) + c, accumulate);
    PutPack(up_gradient, dgate_up(r) + F + c, accumulate);
    if (y) Store<N>(up, y(r) + c);
  }
}

}  // namespace

void Run(CudaStream& stream, const SwigluFwd& f) {
  if (f.y.size() == 0) return;
  DispatchCuda(f.y.dtype(), [&]<class T>() {
    const auto run = [&]<int N>() {
      const RowPlan plan = PlanRows(f.y.dim(-1) / N, Hold::kNothing);
      const int64_t rows = f.y.size() / f.y.dim(-1);
      Forward<T, N><<<CeilDiv(rows, plan.teams()), plan.threads, 0, stream.handle()>>>(
          RowsOf<const T>(f.gate_up), RowsOf<T>(f.y), rows, f.y.dim(-1), plan.lanes);
    };
    constexpr int kN = kPack<T>;
    Packable<T>(f.gate_up, kN) && Packable<T>(f.y, kN) ? run.template operator()<kN>()
                                                       : run.template operator()<1>();
  });
  CheckLaunch("swiglu");
}

void Run(CudaStream& stream, const SwigluBwd& b) {
  if (b.dy.size() == 0) return;
  DispatchCuda(b.dy.dtype(), [&]<class T>() {
    const auto run = [&]<int N>() {
      const RowPlan plan = PlanRows(b.dy.dim(-1) / N, Hold::kNothing);
      const int64_t rows = b.dy.size() / b.dy.dim(-1);
      Backward<T, N><<<CeilDiv(rows, plan.teams()), plan.threads, 0, stream.handle()>>>(
          RowsOf<const T>(b.fwd.gate_up), RowsOf<const T>(b.dy), RowsOf<T>(b.dgate_up),
          RowsOf<T>(b.y), rows, b.dy.dim(-1), plan.lanes, b.dgate_up.accumulate);
    };
    constexpr int kN = kPack<T>;
    Packable<T>(b.fwd.gate_up, kN) && Packable<T>(b.dy, kN) && Packable<T>(b.dgate_up, kN) &&
            Packable<T>(b.y, kN)
        ? run.template operator()<kN>()
        : run.template operator()<1>();
  });
  CheckLaunch("swiglu backward");
}

}  // namespace weft
