#include <cmath>

#include "kernels/base/cuda_rows.cuh"
#include "kernels/qk_norm_rope/qk_norm_rope.h"

namespace weft {
namespace {

constexpr const char* kOp = "qk_norm_rope";

// `head_lanes` threads share a head's pairs (i, i + K/2): a pack of N neighbouring i each or, where
// N = 1, every head_lanes-th. A team of threads, a whole block where the norm is over all heads,
// works on `heads_at_once` heads of a token, and on the others in further turns.
struct Split {
  int B, T_, H, K, half;  // half = ceil(K / 2)
  int head_lanes, heads_at_once, turns, teams;
  double log2_ratio, ratio;  // of neighbouring frequencies
  int64_t offset;
  bool rotates;

  __host__ __device__ int64_t Items() const { return int64_t{(T_ + teams - 1) / teams} * B; }
};

template <QkNorm kNorm>
inline constexpr int kThreads = kNorm == QkNorm::kFull ? kMostRowThreads : kRowThreads;
inline constexpr int kStages = 4;

// What a thread works on next: a turn of a token or, where the norm is over all heads, all turns.
// Blocks share the items (teams() positions of a batch row), evenly; batch rows of the same
// positions follow each other. What is behind the last position or head is read as the last one and
// not written.
template <QkNorm kNorm>
struct Unit {
  const Split& split;
  int items, b, position, first_head, turn = 0;

  __device__ explicit Unit(const Split& s) : split(s) {
    const int64_t begin = s.Items() * blockIdx.x / gridDim.x;
    items = static_cast<int>(s.Items() * (blockIdx.x + 1) / gridDim.x - begin);
    b = static_cast<int>(begin % s.B);
    const int head = threadIdx.x / s.head_lanes;
    position = static_cast<int>(begin / s.B) * s.teams + head / s.heads_at_once;
    first_head = head % s.heads_at_once;
  }
  __device__ int Turns() const { return kNorm == QkNorm::kFull ? split.turns : 1; }
  __device__ void Next() {
    turn += Turns();
    if (turn < split.turns) return;
    turn = 0;
    --items;
    if (++b < split.B) return;
    b = 0;
    position += split.teams;
  }
  __device__ int Head(int i) const { return first_head + (turn + i) * split.heads_at_once; }
  __device__ bool Has(int i) const { return position < split.T_ && Head(i) < split.H; }
  __device__ HeadIndex At(int i) const {
    return {b, min(position, split.T_ - 1), min(Head(i), split.H - 1)};
  }
};

// A thread's columns of a head: packs that begin at `low` and at High(low).
template <int N>
struct Columns {
  const Split& split;
  int lane;

  __device__ explicit Columns(const Split& s)
      : split(s), lane(threadIdx.x % static_cast<unsigned>(s.head_lanes)) {}
  __device__ int First() const { return min(lane * N, split.half - N); }
  __device__ bool HasFirst() const { return lane * N < split.half; }
  __device__ int High(int low) const { return min(split.half + low, split.K - N); }
  // The middle of an odd K has none.
  __device__ bool HasPartner(int low) const { return N > 1 || split.half + low < split.K; }
  // f(low, whether it is there)
  template <class F>
  __device__ __forceinline__ void ForEach(F&& f) const {
    if constexpr (N > 1) {
      f(First(), HasFirst());
    } else {
      for (int low = lane; low < split.half; low += split.head_lanes) f(low, true);
    }
  }
};

// cos and sin of N neighbouring angles. They are counted in turns, in double: what is left of them
// beside whole turns is good to 1e-9 at positions up to 1e6. For bf16, the hardware's sine of that
// is good enough: 2^-21.
template <class T, int N>
struct Rotation {
  float cos[N], sin[N];

  __device__ void Compute(const Split& split, int position, int low) {
    constexpr double kTurnsPerRadian = 0.15915494309189533577;
    constexpr float kRadiansPerTurn = 6.2831853f;
    double turns = static_cast<double>(split.offset + position) * kTurnsPerRadian *
                   exp2(low * split.log2_ratio);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float part = static_cast<float>(turns - rint(turns));
      if constexpr (std::is_same_v<T, BF16>) {
        __sincosf(kRadiansPerTurn * part, &sin[k], &cos[k]);
      } else {
        sincospif(2 * part, &sin[k], &cos[k]);
      }
      turns *= split.ratio;
    }
  }
  // Turns the pairs (low, high) by sign times the angle.
  __device__ void Turn(float sign, float (&low)[N], float (&high)[N]) const {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float x = low[k], z = high[k], s = sign * sin[k];
      low[k] = x * cos[k] - z * s;
      high[k] = z * cos[k] + x * s;
    }
  }
};

// Sum over the threads that share a norm.
template <QkNorm kNorm>
__device__ float NormSum(const Split& split, float x) {
  return kNorm == QkNorm::kFull ? TeamSum(x, blockDim.x) : LaneSum(x, split.head_lanes);
}

template <class T>
struct ForwardArgs {
  Split split;
  HeadRows<const T> x;
  HeadRows<T> y;
  HeadRows<float> rstd;
  const float* w;
  float eps;
};

template <class T, int N, QkNorm kNorm>
__global__ void __launch_bounds__(kThreads<kNorm>, kNorm == QkNorm::kFull ? 1 : 4)
    Forward(const ForwardArgs<T> f) {
  constexpr bool kFull = kNorm == QkNorm::kFull;
  const Split& split = f.split;
  const Columns<N> columns(split);
  Stages<kStages> stages(2);
  Unit<kNorm> unit(split), ahead(split);
  const auto fetch = [&] {
    if (N > 1 && ahead.items > 0) {
      const T* const head = f.x(ahead.At(0));
      stages.Fetch(0, head + columns.First());
      stages.Fetch(1, head + columns.High(columns.First()));
      ahead.Next();
    }
    stages.Commit();
  };
  for (int i = 1; i < kStages; ++i) fetch();
  Rotation<T, N> rotation;
  int rotation_at = -1;
  for (; unit.items > 0; unit.Next(), stages.Next()) {
    fetch();
    if (N > 1 && split.rotates && unit.position != rotation_at) {
      rotation_at = unit.position;
      rotation.Compute(split, rotation_at, columns.First());
    }
    stages.Wait();
    float low[N], high[N], w_low[N], w_high[N], rstd = 1;
    const auto load = [&](int turn, int c) {
      if constexpr (N > 1) {
        stages.template Unpack<T>(0, low);
        stages.template Unpack<T>(1, high);
      } else {
        Load<N>(f.x(unit.At(turn)) + c, low);
        Load<N>(f.x(unit.At(turn)) + columns.High(c), high);
      }
    };
    if constexpr (kNorm != QkNorm::kNone) {
      float squares = 0;
      for (int turn = 0; turn < unit.Turns(); ++turn) {
        columns.ForEach([&](int c, bool there) {
          load(turn, c);
          float sum = 0;
#pragma unroll
          for (int k = 0; k < N; ++k)
            sum += low[k] * low[k] + (columns.HasPartner(c) ? high[k] * high[k] : 0);
          squares += there && unit.Has(turn) ? sum : 0;
        });
      }
      rstd = rsqrtf(NormSum<kNorm>(split, squares) / (kFull ? split.H * split.K : split.K) + f.eps);
      if (unit.Has(0) && (kFull ? threadIdx.x : columns.lane) == 0) *f.rstd(unit.At(0)) = rstd;
    }
    for (int turn = 0; turn < unit.Turns(); ++turn) {
      const HeadIndex at = unit.At(turn);
      columns.ForEach([&](int c, bool there) {
        load(turn, c);
        const int partner = columns.High(c);
        if constexpr (kNorm != QkNorm::kNone) {
          const float* const w = f.w + (kFull ? at.h * split.K : 0);
          Load<N>(w + c, w_low);
          Load<N>(w + partner, w_high);
#pragma unroll
          for (int k = 0; k < N; ++k) {
            low[k] *= rstd * w_low[k];
            high[k] *= rstd * w_high[k];
          }
        }
        if (split.rotates) {
          if constexpr (N == 1) rotation.Compute(split, unit.position, c);
          rotation.Turn(1, low, high);
        }
        if (!there || !unit.Has(turn)) return;
        Store<N>(low, f.y(at) + c);
        if (columns.HasPartner(c)) Store<N>(high, f.y(at) + partner);
      });
    }
  }
}

template <class T>
struct BackwardArgs {
  Split split;
  HeadRows<const T> x, dy;
  HeadRows<T> dx;
  HeadRows<const float> rstd;
  const float* w;
  float* dw;  // [blocks, size of w]; kHead with N = 1: [heads at once of all blocks, K]
  bool accumulate;
};

// With g = R^T dy (R is the rotation) and n = x rstd:  dx = rstd (g w - n mean(n g w)),
// dw = sum_rows n g.
template <class T, int N, QkNorm kNorm>
__global__ void __launch_bounds__(kThreads<kNorm>, kNorm == QkNorm::kFull ? 1 : 2)
    Backward(const BackwardArgs<T> a) {
  constexpr bool kFull = kNorm == QkNorm::kFull, kHead = kNorm == QkNorm::kHead;
  StartDependents();
  const Split& split = a.split;
  const Columns<N> columns(split);
  const int width = kFull ? split.H * split.K : split.K, heads = blockDim.x / split.head_lanes,
            head = threadIdx.x / split.head_lanes;
  Stages<kStages> stages(kHead || kFull ? 4 : 2);
  Unit<kNorm> unit(split), ahead(split);
  const auto fetch = [&] {
    if (N > 1 && ahead.items > 0) {
      const HeadIndex at = ahead.At(0);
      const int c = columns.First(), partner = columns.High(c);
      stages.Fetch(0, a.dy(at) + c);
      stages.Fetch(1, a.dy(at) + partner);
      if constexpr (kHead || kFull) {
        stages.Fetch(2, a.x(at) + c);
        stages.Fetch(3, a.x(at) + partner);
      }
      ahead.Next();
    }
    stages.Commit();
  };
  for (int i = 1; i < kStages; ++i) fetch();
  // The thread's own columns: in registers or, where N = 1, in memory.
  float dw_low[N] = {}, dw_high[N] = {};
  float* const dw =
      a.dw + (kHead && N == 1 ? int64_t{blockIdx.x} * heads + head : blockIdx.x) * width;
  if constexpr (N == 1 && (kHead || kFull)) {
    for (int turn = 0; turn < unit.Turns(); ++turn) {
      if (unit.Head(turn) >= split.H) break;
      columns.ForEach([&](int c, bool) {
        float* const to = dw + (kFull ? unit.Head(turn) * split.K : 0);
        to[c] = 0;
        if (columns.HasPartner(c)) to[columns.High(c)] = 0;
      });
    }
  }
  Rotation<T, N> rotation;
  int rotation_at = -1;
  for (; unit.items > 0; unit.Next(), stages.Next()) {
    fetch();
    float rstd = 0, mean = 0;
    if constexpr (kHead || kFull) rstd = *a.rstd(unit.At(0));
    if (N > 1 && split.rotates && unit.position != rotation_at) {
      rotation_at = unit.position;
      rotation.Compute(split, rotation_at, columns.First());
    }
    stages.Wait();
    float g_low[N], g_high[N], x_low[N], x_high[N], w_low[N], w_high[N];
    const auto load = [&](int turn, int c) {
      const HeadIndex at = unit.At(turn);
      const int partner = columns.High(c);
      if constexpr (N > 1) {
        stages.template Unpack<T>(0, g_low);
        stages.template Unpack<T>(1, g_high);
      } else {
        Load<N>(a.dy(at) + c, g_low);
        Load<N>(a.dy(at) + partner, g_high);
      }
      if (split.rotates) {
        if constexpr (N == 1) rotation.Compute(split, unit.position, c);
        rotation.Turn(-1, g_low, g_high);
      }
      if constexpr (kHead || kFull) {
        if constexpr (N > 1) {
          stages.template Unpack<T>(2, x_low);
          stages.template Unpack<T>(3, x_high);
        } else {
          Load<N>(a.x(at) + c, x_low);
          Load<N>(a.x(at) + partner, x_high);
        }
        const float* const w = a.w + (kFull ? at.h * split.K : 0);
        Load<N>(w + c, w_low);
        Load<N>(w + partner, w_high);
      }
    };
    if constexpr (kHead || kFull) {
      float dot = 0;
      for (int turn = 0; turn < unit.Turns(); ++turn) {
        columns.ForEach([&](int c, bool there) {
          load(turn, c);
          const bool has = there && unit.Has(turn);
          const float rstd_or_0 = has ? rstd : 0;
          float sum = 0;
#pragma unroll
          for (int k = 0; k < N; ++k) {
            const float xg_low = x_low[k] * g_low[k],
                        xg_high = columns.HasPartner(c) ? x_high[k] * g_high[k] : 0;
            sum += xg_low * w_low[k] + xg_high * w_high[k];
            dw_low[k] += xg_low * rstd_or_0;
            dw_high[k] += xg_high * rstd_or_0;
          }
          dot += has ? sum : 0;
          if constexpr (N == 1) {
            float* const to = dw + (kFull ? unit.At(turn).h * split.K : 0);
            if (has) to[c] += dw_low[0];
            if (has && columns.HasPartner(c)) to[columns.High(c)] += dw_high[0];
            dw_low[0] = dw_high[0] = 0;
          }
        });
      }
      mean = NormSum<kNorm>(split, dot) * rstd * rstd / width;
    }
    for (int turn = 0; turn < unit.Turns(); ++turn) {
      columns.ForEach([&](int c, bool there) {
        load(turn, c);
        if constexpr (kHead || kFull) {
#pragma unroll
          for (int k = 0; k < N; ++k) {
            g_low[k] = rstd * (g_low[k] * w_low[k] - x_low[k] * mean);
            g_high[k] = rstd * (g_high[k] * w_high[k] - x_high[k] * mean);
          }
        }
        if (!there || !unit.Has(turn)) return;
        T* const to = a.dx(unit.At(turn));
        PutPack(g_low, to + c, a.accumulate);
        if (columns.HasPartner(c)) PutPack(g_high, to + columns.High(c), a.accumulate);
      });
    }
  }
  if constexpr (kFull && N > 1) {
    if (head < split.H && columns.HasFirst()) {
      Store<N>(dw_low, dw + head * split.K + columns.First());
      Store<N>(dw_high, dw + head * split.K + columns.High(columns.First()));
    }
  }
  if constexpr (kHead && N > 1) {
    __shared__ __align__(32) float sums[kRowThreads * 2 * N];
    if (columns.HasFirst()) {
      Store<N>(dw_low, sums + head * width + columns.First());
      Store<N>(dw_high, sums + head * width + columns.High(columns.First()));
    }
    __syncthreads();
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
      float sum = 0;
      for (int h = 0; h < heads; ++h) sum += sums[h * width + c];
      dw[c] = sum;
    }
  }
}

template <int N, QkNorm kNorm>
Split SplitOf(const QkNormRopeFwd& f) {
  const auto dim = [&](int i) { return static_cast<int>(f.x.dim(i)); };
  Split s{.B = dim(0), .T_ = dim(1), .H = dim(2), .K = dim(3), .heads_at_once = 1};
  s.half = (s.K + 1) / 2;
  s.head_lanes =
      std::min(kWarp, static_cast<int>(std::bit_ceil(static_cast<uint32_t>(s.half / N))));
  if (kNorm == QkNorm::kFull) {
    const int threads = CeilDiv(int64_t{s.H} * s.head_lanes, kWarp) * kWarp;
    s.heads_at_once = std::min(threads, kMostRowThreads) / s.head_lanes;
  }
  s.turns = CeilDiv(s.H, s.heads_at_once);
  s.teams = kNorm == QkNorm::kFull ? 1 : kRowThreads / s.head_lanes;
  s.rotates = f.theta > 0;
  if (s.rotates) s.log2_ratio = -2 * std::log2(f.theta) / s.K;
  s.ratio = std::exp2(s.log2_ratio);
  s.offset = f.offset;
  return s;
}

// As many blocks as run at once, or as there are items.
template <class Kernel>
int Blocks(const CudaStream& stream, Kernel kernel, const Split& split, int threads,
           int64_t shared) {
  AllowShared(kernel, shared);
  int resident = 0;
  CudaCheck(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads,
                                                          static_cast<size_t>(shared)),
            kOp);
  return static_cast<int>(
      std::clamp<int64_t>(int64_t{resident} * stream.multiprocessors(), 1, split.Items()));
}

// Calls f.template operator()<norm>().
template <class F>
void DispatchNorm(QkNorm norm, F&& f) {
  switch (norm) {
    case QkNorm::kNone:
      return f.template operator()<QkNorm::kNone>();
    case QkNorm::kHead:
      return f.template operator()<QkNorm::kHead>();
    case QkNorm::kFull:
      return f.template operator()<QkNorm::kFull>();
  }
}

template <class T, int N>
void RunForward(CudaStream& stream, const QkNormRopeFwd& f) {
  DispatchNorm(f.norm, [&]<QkNorm kNorm>() {
    const ForwardArgs<T> args{SplitOf<N, kNorm>(f), HeadRowsOf<const T>(f.x),
                              HeadRowsOf<T>(f.y),   HeadRowsOf<float>(f.rstd),
                              f.w.Data<float>(),    static_cast<float>(f.eps)};
    const Split& s = args.split;
    const int threads = s.teams * s.heads_at_once * s.head_lanes;
    const int64_t shared = N > 1 ? Stages<kStages>::Bytes(2, threads) : 0;
    const auto kernel = Forward<T, N, kNorm>;
    kernel<<<Blocks(stream, kernel, s, threads, shared), threads, shared, stream.handle()>>>(args);
  });
  CheckLaunch(kOp);
}

template <class T, int N>
void RunBackward(CudaStream& stream, const QkNormRopeBwd& b) {
  DispatchNorm(b.fwd.norm, [&]<QkNorm kNorm>() {
    constexpr bool kNone = kNorm == QkNorm::kNone;
    BackwardArgs<T> args{SplitOf<N, kNorm>(b.fwd),
                         HeadRowsOf<const T>(b.fwd.x),
                         HeadRowsOf<const T>(b.dy),
                         HeadRowsOf<T>(b.dx),
                         HeadRowsOf<const float>(b.fwd.rstd),
                         b.fwd.w.Data<float>(),
                         nullptr,
                         b.dx.accumulate};
    const Split& s = args.split;
    const int threads = s.teams * s.heads_at_once * s.head_lanes;
    const int64_t shared = N > 1 ? Stages<kStages>::Bytes(kNone ? 2 : 4, threads) : 0;
    const auto kernel = Backward<T, N, kNorm>;
    const int blocks = Blocks(stream, kernel, s, threads, shared);
    const int64_t partials = kNorm == QkNorm::kHead && N == 1 ? int64_t{blocks} * s.teams : blocks;
    if (!kNone) {
      args.dw =
          static_cast<float*>(stream.Scratch(partials * b.fwd.w.dim(0) * int64_t{sizeof(float)}));
    }
    kernel<<<blocks, threads, shared, stream.handle()>>>(args);
    CheckLaunch("qk_norm_rope backward");
    if (!kNone) SumPartials(stream, args.dw, partials, b.dw);
  });
}

// Packs fit, and a thread has one pair of them in a head and, for kFull, one head in a token.
template <class T>
bool PackableFwd(const QkNormRopeFwd& f, int n) {
  const int64_t K = f.x.dim(3);
  if (K % (2 * n) != 0 || K > 2 * n * kWarp) return false;
  const auto lanes = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(K / (2 * n))));
  return (f.norm != QkNorm::kFull || f.x.dim(2) * lanes <= kMostRowThreads) &&
         Packable<T>(f.x, n) && Packable<T>(f.y, n) && Packable<float>(f.w, n);
}

}  // namespace

void Run(CudaStream& stream, const QkNormRopeFwd& f) {
  if (f.x.size() == 0) return;
  DispatchCuda(f.x.dtype(), [&]<class T>() {
    PackableFwd<T>(f, kPack<T>) ? RunForward<T, kPack<T>>(stream, f) : RunForward<T, 1>(stream, f);
  });
}

void Run(CudaStream& stream, const QkNormRopeBwd& b) {
  if (b.fwd.x.size() == 0) {
    if (b.fwd.w.defined()) SumPartials(stream, nullptr, 0, b.dw);
    return;
  }
  DispatchCuda(b.fwd.x.dtype(), [&]<class T>() {
    constexpr int kN = kPack<T>;
    PackableFwd<T>(b.fwd, kN) && Packable<T>(b.dy, kN) && Packable<T>(b.dx, kN)
        ? RunBackward<T, kN>(stream, b)
        : RunBackward<T, 1>(stream, b);
  });
}

}  // namespace weft
