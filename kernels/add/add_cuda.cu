#include "kernels/add/add.h"
#include "kernels/base/cuda_rows.cuh"

namespace weft {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(kRowThreads)
    Forward(Rows<const T> a, Rows<const T> b, Rows<T> y, int64_t rows, int D, int lanes) {
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
    Backward(Rows<const T> dy, Rows<T> da, Rows<T> db, int64_t rows, int D, int lanes, bool add_a,
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
  DispatchCuda(f.y.dtype(), [&]<class T>() {
    const auto run = [&]<int N>() {
      const RowPlan plan = PlanRows(f.y.dim(-1) / N, Hold::kNothing);
      const int64_t rows = f.y.size() / f.y.dim(-1);
      Forward<T, N><<<CeilDiv(rows, plan.teams()), plan.threads, 0, stream.handle()>>>(
          RowsOf<const T>(f.a), RowsOf<const T>(f.b), RowsOf<T>(f.y), rows, f.y.dim(-1),
          plan.lanes);
    };
    constexpr int kN = kPack<T>;
    Packable<T>(f.a, kN) && Packable<T>(f.b, kN) && Packable<T>(f.y, kN)
        ? run.template operator()<kN>()
        : run.template operator()<1>();
  });
  CheckLaunch("add");
}

void Run(CudaStream& stream, const AddBwd& b) {
  if (b.dy.size() == 0) return;
  DispatchCuda(b.dy.dtype(), [&]<class T>() {
    const auto run = [&]<int N>() {
      const RowPlan plan = PlanRows(b.dy.dim(-1) / N, Hold::kNothing);
      const int64_t rows = b.dy.size() / b.dy.dim(-1);
      Backward<T, N><<<CeilDiv(rows, plan.teams()), plan.threads, 0, stream.handle()>>>(
          RowsOf<const T>(b.dy), RowsOf<T>(b.da), RowsOf<T>(b.db), rows, b.dy.dim(-1), plan.lanes,
          b.da.accumulate, b.db.accumulate);
    };
    constexpr int kN = kPack<T>;
    Packable<T>(b.dy, kN) && Packable<T>(b.da, kN) && Packable<T>(b.db, kN)
        ? run.template operator()<kN>()
        : run.template operator()<1>();
  });
  CheckLaunch("add backward");
}

}  // namespace weft
