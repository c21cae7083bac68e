#include "kernels/base/cuda_rows.cuh"
#include "kernels/elementary/elementary.h"
#include "kernels/swiglu/swiglu.h"

namespace weft {
namespace {

// Rows from the last to the first: the product before it wrote those last, which are in the cache,
// and the one after it begins with those that are done last.
template <class T, int N>
__global__ void __launch_bounds__(kRowThreads)
    Forward(int64_t rows, int F, int lanes, Rows<const T> gate_up, Rows<T> y) {
  const int64_t r = rows - 1 - (int64_t{blockIdx.x} * (blockDim.x / lanes) + threadIdx.x / lanes);
  if (r < 0) return;
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
    Backward(int64_t rows, int F, int lanes, Rows<const T> gate_up, Rows<const T> dy,
             Rows<T> dgate_up, Rows<T> y, bool accumulate) {
  const int64_t r = rows - 1 - (int64_t{blockIdx.x} * (blockDim.x / lanes) + threadIdx.x / lanes);
  if (r < 0) return;
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
  DispatchPacks(f.y.dtype(), {f.gate_up, f.y}, [&]<class T, int N>() {
    LaunchOnRows<N>(stream, "swiglu", f.y, Forward<T, N>, RowsOf<const T>(f.gate_up),
                    RowsOf<T>(f.y));
  });
}

void Run(CudaStream& stream, const SwigluBwd& b) {
  if (b.dy.size() == 0) return;
  const TensorView &gate_up = b.fwd.gate_up, &y = b.y;
  DispatchPacks(b.dy.dtype(), {gate_up, b.dy, b.dgate_up, y}, [&]<class T, int N>() {
    LaunchOnRows<N>(stream, "swiglu backward", b.dy, Backward<T, N>, RowsOf<const T>(gate_up),
                    RowsOf<const T>(b.dy), RowsOf<T>(b.dgate_up), RowsOf<T>(y),
                    b.dgate_up.accumulate);
  });
}

}  // namespace weft
