#include <limits>

#include "kernels/base/cuda_rows.cuh"
#include "kernels/elementary/elementary.h"
#include "kernels/gated_rms_norm/gated_rms_norm.h"

namespace weft {
namespace {

template <class T>
struct ForwardArgs {
  HeadRows<const T> x, gate;
  HeadRows<T> y;
  HeadRows<float> rstd;
  const float* w;
  uint32_t rows, T_, H;
  int packs, lanes;
  float eps;
};

template <class T, int N, int kHeld>
__global__ void __launch_bounds__(kMostRowThreads) Forward(const ForwardArgs<T> f) {
  constexpr int kAt = kHeld ? kHeld : 1;
  const int lane = threadIdx.x % f.lanes;
  const uint32_t row = blockIdx.x * (blockDim.x / f.lanes) + threadIdx.x / f.lanes;
  const bool valid = row < f.rows;
  const HeadIndex at = HeadAt(valid ? row : f.rows - 1, f.T_, f.H);
  Words<T, N> x[kAt], gate[kAt];
  float w[kAt][N];
  const auto load = [&](int i, int pack, bool) {
    x[i] = LoadWords<N>(f.x(at) + pack * N);
    gate[i] = LoadWords<N>(f.gate(at) + pack * N);
    Load<N>(f.w + pack * N, w[i]);
  };
  float x_at[N], gate_at[N], squares = 0;
  if constexpr (kHeld > 0) ForPacks<kHeld>(lane, f.lanes, f.packs, load);
  ForPacks<kHeld>(lane, f.lanes, f.packs, [&](int i, int pack, bool inside) {
    if constexpr (kHeld == 0) load(i, pack, inside);
    Unpack(x[i], x_at);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < N; ++k) sum += x_at[k] * x_at[k];
    squares += inside ? sum : 0;
  });
  const float rstd = rsqrtf(TeamSum(squares, f.lanes) / (f.packs * N) + f.eps);
  if (!valid) return;
  if (lane == 0 && f.rstd) *f.rstd(at) = rstd;
  ForPacks<kHeld>(lane, f.lanes, f.packs, [&](int i, int pack, bool inside) {
    if (!inside) return;
    if constexpr (kHeld == 0) load(i, pack, inside);
    Unpack(x[i], x_at);
    Unpack(gate[i], gate_at);
#pragma unroll
    for (int k = 0; k < N; ++k)
      x_at[k] *= rstd * w[i][k] * (gate_at[k] * DeviceSigmoid(gate_at[k]));
    Store<N>(x_at, f.y(at) + pack * N);
  });
}

template <class T>
struct BackwardArgs {
  HeadRows<const T> x, gate, dy;
  HeadRows<T> dx, dgate;
  HeadRows<const float> rstd;
  const float* w;
  float* dw;  // [blocks, V]; [teams of all blocks, V] where nothing is held
  uint32_t rows, T_, H;
  int packs, lanes;
  bool add_dx, add_dgate;
};

// With n = x rstd, s = silu(gate), dn = dy w s:
//   dx = rstd (dn - n mean(n dn)),  dgate = dy n w silu'(gate),  dw = sum dy n s.
template <class T, int N, int kHeld>
__global__ void __launch_bounds__(kMostRowThreads, kHeld == 1 ? 2 : 1)
    Backward(const BackwardArgs<T> b) {
  constexpr int kAt = kHeld ? kHeld : 1;
  StartDependents();
  const int lane = threadIdx.x % b.lanes, teams = blockDim.x / b.lanes,
            team = threadIdx.x / b.lanes, V = b.packs * N;
  float* const dw_walked = b.dw + (int64_t{blockIdx.x} * teams + team) * V;
  Words<T, N> x[kAt], gate[kAt], dy[kAt];
  float dw[kAt][N] = {}, dn[kAt][N];
  if constexpr (kHeld == 0) {
    ForPacks<0>(lane, b.lanes, b.packs, [&](int, int pack, bool) {
      for (int k = 0; k < N; ++k) dw_walked[pack * N + k] = 0;
    });
  }
  for (uint32_t first = blockIdx.x * teams; first < b.rows; first += gridDim.x * teams) {
    const bool valid = first + team < b.rows;
    const HeadIndex at = HeadAt(valid ? first + team : b.rows - 1, b.T_, b.H);
    const auto load = [&](int i, int pack, bool) {
      x[i] = LoadWords<N>(b.x(at) + pack * N);
      gate[i] = LoadWords<N>(b.gate(at) + pack * N);
      dy[i] = LoadWords<N>(b.dy(at) + pack * N);
    };
    if constexpr (kHeld > 0) ForPacks<kHeld>(lane, b.lanes, b.packs, load);
    const float rstd = *b.rstd(at), rstd_or_0 = valid ? rstd : 0;
    float x_at[N], gate_at[N], dy_at[N], w[N], dot = 0;
    ForPacks<kHeld>(lane, b.lanes, b.packs, [&](int i, int pack, bool inside) {
      if constexpr (kHeld == 0) load(i, pack, inside);
      Unpack(x[i], x_at);
      Unpack(gate[i], gate_at);
      Unpack(dy[i], dy_at);
      Load<N>(b.w + pack * N, w);
      float sum = 0;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float s = DeviceSigmoid(gate_at[k]), silu = gate_at[k] * s,
                    dyn = dy_at[k] * x_at[k] * rstd_or_0;
        dn[i][k] = dy_at[k] * w[k] * silu;
        sum += dn[i][k] * x_at[k];
        gate_at[k] = dyn * w[k] * (s + silu * (1 - s));
        if constexpr (kHeld > 0) {
          dw[i][k] += dyn * silu;
        } else {
          dw_walked[pack * N + k] += dyn * silu;
        }
      }
      dot += inside ? sum : 0;
      if (inside && valid) PutPack(gate_at, b.dgate(at) + pack * N, b.add_dgate);
    });
    const float mean = TeamSum(dot, b.lanes) * rstd * rstd / V;
    if (!valid) continue;
    ForPacks<kHeld>(lane, b.lanes, b.packs, [&](int i, int pack, bool inside) {
      if (!inside) return;
      if constexpr (kHeld == 0) {
        load(i, pack, inside);
        Unpack(gate[i], gate_at);
        Unpack(dy[i], dy_at);
        Load<N>(b.w + pack * N, w);
#pragma unroll
        for (int k = 0; k < N; ++k)
          dn[i][k] = dy_at[k] * w[k] * (gate_at[k] * DeviceSigmoid(gate_at[k]));
      }
      Unpack(x[i], x_at);
#pragma unroll
      for (int k = 0; k < N; ++k) x_at[k] = rstd * (dn[i][k] - x_at[k] * mean);
      PutPack(x_at, b.dx(at) + pack * N, b.add_dx);
    });
  }
  if constexpr (kHeld > 0) SumTeams(dw, b.lanes, b.packs, b.dw + int64_t{blockIdx.x} * V);
}

uint32_t RowsOfHeads(const TensorView& x) {
  const int64_t rows = x.dim(0) * x.dim(1) * x.dim(2);
  Check(rows <= std::numeric_limits<int32_t>::max(), "gated_rms_norm: B T H is ", rows,
        ", expected less than 2^31");
  return static_cast<uint32_t>(rows);
}

template <class T, int N>
void RunForward(CudaStream& stream, const GatedRmsNormFwd& f) {
  const int packs = static_cast<int>(f.w.dim(0) / N);
  const uint32_t rows = RowsOfHeads(f.x);
  const RowPlan plan = PlanRows(packs, N > 1 ? Hold::kMuch : Hold::kNothing);
  const ForwardArgs<T> args{HeadRowsOf<const T>(f.x),
                            HeadRowsOf<const T>(f.gate),
                            HeadRowsOf<T>(f.y),
                            HeadRowsOf<float>(f.rstd),
                            f.w.Data<float>(),
                            rows,
                            static_cast<uint32_t>(f.x.dim(1)),
                            static_cast<uint32_t>(f.x.dim(2)),
                            packs,
                            plan.lanes,
                            static_cast<float>(f.eps)};
  DispatchHeld<N>(plan.held, [&]<int kHeld>() {
    Forward<T, N, kHeld><<<CeilDiv(rows, plan.teams()), plan.threads, 0, stream.handle()>>>(args);
  });
  CheckLaunch("gated_rms_norm");
}

template <class T, int N>
void RunBackward(CudaStream& stream, const GatedRmsNormBwd& g) {
  const GatedRmsNormFwd& f = g.fwd;
  const uint32_t rows = RowsOfHeads(f.x);
  LaunchBackwardOnRows<N>(
      stream, "gated_rms_norm backward", rows, /*waves=*/3, g.dw,
      [&]<int kHeld>(const RowPlan& plan, int blocks, float* dw) {
        Backward<T, N, kHeld><<<blocks, plan.threads, 0, stream.handle()>>>(
            {HeadRowsOf<const T>(f.x), HeadRowsOf<const T>(f.gate), HeadRowsOf<const T>(g.dy),
             HeadRowsOf<T>(g.dx), HeadRowsOf<T>(g.dgate), HeadRowsOf<const float>(f.rstd),
             f.w.Data<float>(), dw, rows, static_cast<uint32_t>(f.x.dim(1)),
             static_cast<uint32_t>(f.x.dim(2)), static_cast<int>(f.w.dim(0) / N), plan.lanes,
             g.dx.accumulate, g.dgate.accumulate});
      });
}

}  // namespace

void Run(CudaStream& stream, const GatedRmsNormFwd& f) {
  if (f.x.size() == 0) return;
  DispatchPacks(f.x.dtype(), {f.x, f.gate, f.y, f.w},
                [&]<class T, int N>() { RunForward<T, N>(stream, f); });
}

void Run(CudaStream& stream, const GatedRmsNormBwd& b) {
  const GatedRmsNormFwd& f = b.fwd;
  if (f.x.size() == 0) return SumPartials(stream, nullptr, 0, b.dw);
  DispatchPacks(f.x.dtype(), {f.x, f.gate, f.y, f.w, b.dy, b.dx, b.dgate},
                [&]<class T, int N>() { RunBackward<T, N>(stream, b); });
}

}  // namespace weft
