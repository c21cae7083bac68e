#include "kernels/add/add.h"
#include "kernels/base/cuda_rows.cuh"

namespace weft {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(kRowThreads)
    Forward(int64_t rows, int D, int lanes, Rows<const T> a, Rows<const T> b, Rows<T> y) {
  const int64_t r = int64_t{blockIdx.x} * (blockDim.x / lanes) + threadIdx.x / lanes;
  if (r >= rows) return;
  for (int c = threadIdx.x % lanes * N; c < D; c += lanes * N) {
    float x[N], sum[N];
    Load<N>(a(r) + c, x);
    Load<N>(b(r) + c, sum);
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] += x[k];
    Store<N>(sum, y(r) + c);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kRowThreads)
    Backward(int64_t rows, int D, int lanes, Rows<const T> dy, Rows<T> da, Rows<T> db, bool add_a,
             bool add_b) {
  const int64_t r = int64_t{blockIdx.x} * (blockDim.x / lanes) + threadIdx.x / lanes;
  if (r >= rows) return;
  for (int c = threadIdx.x % lanes * N; c < D; c += lanes * N) {
    const Words<T, N> words = LoadWords<N>(dy(r) + c);
    float up[N];
    Unpack(words, up);
    PutPack(up, da(r) + c, add_a);
    Unpack(words, up);
    PutPack(up, db(r) + c, add_b);
  }
}

}  // namespace

void Run(CudaStream& stream, const AddFwd& f) {
  if (f.y.size() == 0) return;
  DispatchPacks(f.y.dtype(), {f.a, f.b, f.y}, [&]<class T, int N>() {
    LaunchOnRows<N>(stream, "add", f.y, Forward<T, N>, RowsOf<const T>(f.a), RowsOf<const T>(f.b),
                    RowsOf<T>(f.y));
  });
}

void Run(CudaStream& stream, const AddBwd& b) {
  if (b.dy.size() == 0) return;
  DispatchPacks(b.dy.dtype(), {b.dy, b.da, b.db}, [&]<class T, int N>() {
    LaunchOnRows<N>(stream, "add backward", b.dy, Backward<T, N>, RowsOf<const T>(b.dy),
                    RowsOf<T>(b.da), RowsOf<T>(b.db), b.da.accumulate, b.db.accumulate);
  });
}

}  // namespace weft
