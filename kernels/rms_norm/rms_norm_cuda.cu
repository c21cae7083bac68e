#include "kernels/base/cuda_rows.cuh"
#include "kernels/rms_norm/rms_norm.h"

namespace weft {
namespace {

template <class T>
struct ForwardArgs {
  Rows<const T> x, residual;
  Rows<T> y, sum;
  const float* w;
  float* rstd;
  int64_t rows, rstd_stride;
  int packs, lanes;
  float eps;
};

// Rows from the last to the first: the product before it wrote those last, which are in the cache,
// and the one after it begins with those that are done last.
template <class T, int N, int kHeld, Residual kMode>
__global__ void __launch_bounds__(kMostRowThreads) Forward(const ForwardArgs<T> f) {
  constexpr int kAt = kHeld ? kHeld : 1;
  const int lane = threadIdx.x % f.lanes, teams = blockDim.x / f.lanes;
  const int64_t row = f.rows - 1 - (int64_t{blockIdx.x} * teams + threadIdx.x / f.lanes);
  const bool valid = row >= 0;
  const int64_t r = valid ? row : 0;
  Words<T, N> x[kAt], residual[kAt];
  float w[kAt][N];
  const auto load = [&](int i, int pack, bool) {
    x[i] = LoadWords<N>(f.x(r) + pack * N);
    if constexpr (kMode != Residual::kNone) residual[i] = LoadWords<N>(f.residual(r) + pack * N);
    Load<N>(f.w + pack * N, w[i]);
  };
  const auto unpack = [&](int i, float(&h)[N], float(&branch)[N]) {
    Unpack(x[i], h);
    if constexpr (kMode != Residual::kNone) Unpack(residual[i], branch);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if constexpr (kMode == Residual::kBefore) h[k] += branch[k];
    }
  };
  float h[N], branch[N];
  if constexpr (kHeld > 0) ForPacks<kHeld>(lane, f.lanes, f.packs, load);
  float squares = 0;
  ForPacks<kHeld>(lane, f.lanes, f.packs, [&](int i, int pack, bool inside) {
    if constexpr (kHeld == 0) load(i, pack, inside);
    unpack(i, h, branch);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < N; ++k) sum += h[k] * h[k];
    squares += inside ? sum : 0;
  });
  const float rstd = rsqrtf(TeamSum(squares, f.lanes) / (f.packs * N) + f.eps);
  if (!valid) return;
  if (lane == 0) f.rstd[r * f.rstd_stride] = rstd;
  ForPacks<kHeld>(lane, f.lanes, f.packs, [&](int i, int pack, bool inside) {
    if constexpr (kHeld == 0) load(i, pack, inside);
    if (!inside) return;
    unpack(i, h, branch);
    if constexpr (kMode == Residual::kBefore) Store<N>(h, f.sum(r) + pack * N);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      h[k] *= rstd * w[i][k];
      if constexpr (kMode == Residual::kAfter) h[k] += branch[k];
    }
    Store<N>(h, f.y(r) + pack * N);
  });
}

template <class T>
struct BackwardArgs {
  Rows<const T> h, dy, dsum;
  Rows<T> dx, dresidual;
  const float *w, *rstd;
  float* dw;  // [blocks, D]; [teams of all blocks, D] where nothing is held
  int64_t rows, rstd_stride;
  int packs, lanes;
  bool add_dx, add_dresidual, residual_gets_dy;
};

// With n = h rstd and g = dy w:  dh = rstd (g - n mean(n g)) + dsum,  dw = sum_rows dy n.
template <class T, int N, int kHeld>
__global__ void __launch_bounds__(kMostRowThreads, kHeld == 1 ? 2 : 1)
    Backward(const BackwardArgs<T> b) {
  constexpr int kAt = kHeld ? kHeld : 1;
  StartDependents();
  const int lane = threadIdx.x % b.lanes, teams = blockDim.x / b.lanes,
            team = threadIdx.x / b.lanes, D = b.packs * N;
  float* const dw_walked = b.dw + (int64_t{blockIdx.x} * teams + team) * D;
  Words<T, N> h[kAt], dy[kAt], dsum[kAt];
  float dw[kAt][N] = {};
  if constexpr (kHeld == 0) {
    ForPacks<0>(lane, b.lanes, b.packs, [&](int, int pack, bool) {
      for (int k = 0; k < N; ++k) dw_walked[pack * N + k] = 0;
    });
  }
  for (int64_t first = int64_t{blockIdx.x} * teams; first < b.rows;
       first += int64_t{gridDim.x} * teams) {
    const bool valid = first + team < b.rows;
    const int64_t r = valid ? b.rows - 1 - (first + team) : 0;
    const auto load = [&](int i, int pack, bool) {
      h[i] = dy[i] = {};
      if (!valid) return;  // were all these teams to read one row, they would wait for each other
      h[i] = LoadWords<N>(b.h(r) + pack * N);
      dy[i] = LoadWords<N>(b.dy(r) + pack * N);
      if (b.dsum) dsum[i] = LoadWords<N>(b.dsum(r) + pack * N);
    };
    if constexpr (kHeld > 0) ForPacks<kHeld>(lane, b.lanes, b.packs, load);
    const float rstd = b.rstd[r * b.rstd_stride], rstd_or_0 = valid ? rstd : 0;
    float h_at[N], dy_at[N], w[N], dot = 0;
    ForPacks<kHeld>(lane, b.lanes, b.packs, [&](int i, int pack, bool inside) {
      if constexpr (kHeld == 0) load(i, pack, inside);
      Unpack(h[i], h_at);
      Unpack(dy[i], dy_at);
      Load<N>(b.w + pack * N, w);
      float sum = 0;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float product = dy_at[k] * h_at[k];
        sum += product * w[k];
        if constexpr (kHeld > 0) {
          dw[i][k] += product * rstd_or_0;
        } else {
          dw_walked[pack * N + k] += product * rstd_or_0;
        }
      }
      dot += inside ? sum : 0;
    });
    const float mean = TeamSum(dot, b.lanes) * rstd * rstd / D;
    if (!valid) continue;
    ForPacks<kHeld>(lane, b.lanes, b.packs, [&](int i, int pack, bool inside) {
      if (!inside) return;
      if constexpr (kHeld == 0) load(i, pack, inside);
      Unpack(h[i], h_at);
      Unpack(dy[i], dy_at);
      Load<N>(b.w + pack * N, w);
      float dh[N], other[N];
#pragma unroll
      for (int k = 0; k < N; ++k) dh[k] = rstd * (dy_at[k] * w[k] - h_at[k] * mean);
      if (b.dsum) {
        Unpack(dsum[i], other);
#pragma unroll
        for (int k = 0; k < N; ++k) dh[k] += other[k];
      }
      if (b.dresidual) {
#pragma unroll
        for (int k = 0; k < N; ++k) other[k] = b.residual_gets_dy ? dy_at[k] : dh[k];
        PutPack(other, b.dresidual(r) + pack * N, b.add_dresidual);
      }
      PutPack(dh, b.dx(r) + pack * N, b.add_dx);
    });
  }
  if constexpr (kHeld > 0) SumTeams(dw, b.lanes, b.packs, b.dw + int64_t{blockIdx.x} * D);
}

template <class T, int N>
void RunForward(CudaStream& stream, const RmsNormFwd& f) {
  const int64_t rows = f.rstd.dim(0), D = f.w.dim(0);
  const RowPlan plan = PlanRows(D / N, N > 1 ? Hold::kMuch : Hold::kNothing);
  const ForwardArgs<T> args{RowsOf<const T>(f.x),
                            RowsOf<const T>(f.residual),
                            RowsOf<T>(f.y),
                            RowsOf<T>(f.sum),
                            f.w.Data<float>(),
                            f.rstd.Data<float>(),
                            rows,
                            f.rstd.stride(0),
                            static_cast<int>(D / N),
                            plan.lanes,
                            static_cast<float>(f.eps)};
  DispatchHeld<N>(plan.held, [&]<int kHeld>() {
    const auto launch = [&]<Residual kMode>() {
      Forward<T, N, kHeld, kMode>
          <<<CeilDiv(rows, plan.teams()), plan.threads, 0, stream.handle()>>>(args);
    };
    switch (f.mode) {
      case Residual::kNone:
        return launch.template operator()<Residual::kNone>();
      case Residual::kBefore:
        return launch.template operator()<Residual::kBefore>();
      case Residual::kAfter:
        return launch.template operator()<Residual::kAfter>();
    }
  });
  CheckLaunch("rms_norm");
}

template <class T, int N>
void RunBackward(CudaStream& stream, const RmsNormBwd& b) {
  const RmsNormFwd& f = b.fwd;
  LaunchBackwardOnRows<N>(
      stream, "rms_norm backward", f.rstd.dim(0), /*waves=*/1, b.dw,
      [&]<int kHeld>(const RowPlan& plan, int blocks, float* dw) {
        Backward<T, N, kHeld><<<blocks, plan.threads, 0, stream.handle()>>>(
            {RowsOf<const T>(f.mode == Residual::kBefore ? f.sum : f.x), RowsOf<const T>(b.dy),
             RowsOf<const T>(b.dsum), RowsOf<T>(b.dx), RowsOf<T>(b.dresidual), f.w.Data<float>(),
             f.rstd.Data<float>(), dw, f.rstd.dim(0), f.rstd.stride(0),
             static_cast<int>(f.w.dim(0) / N), plan.lanes, b.dx.accumulate, b.dresidual.accumulate,
             f.mode == Residual::kAfter});
      });
}

}  // namespace

void Run(CudaStream& stream, const RmsNormFwd& f) {
  if (f.x.size() == 0) return;
  DispatchPacks(f.x.dtype(), {f.x, f.residual, f.y, f.sum, f.w},
                [&]<class T, int N>() { RunForward<T, N>(stream, f); });
}

void Run(CudaStream& stream, const RmsNormBwd& b) {
  const RmsNormFwd& f = b.fwd;
  if (f.x.size() == 0) return SumPartials(stream, nullptr, 0, b.dw);
  DispatchPacks(f.x.dtype(), {f.x, f.residual, f.y, f.sum, f.w, b.dy, b.dsum, b.dx, b.dresidual},
                [&]<class T, int N>() { RunBackward<T, N>(stream, b); });
}

}  // namespace weft
