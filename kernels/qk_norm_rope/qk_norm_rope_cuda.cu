#include <cmath>

#include "kernels/base/cuda_rows.cuh"
#include "kernels/qk_norm_rope/qk_norm_rope.h"

namespace weft {
namespace {

constexpr const char* kOp = "qk_norm_rope";

// A place is what a norm is over: a head of a position or, for kFull, all its heads. It is the same
// in all batch rows, and so is its rotation.
struct Shape {
  int B, H, K, half, places;         // half = ceil(K / 2)
  double log2_ratio, ratio;          // of neighbouring frequencies
  double turns_per_position[kWarp];  // of the first angle of each pack
  int64_t offset;
  bool rotates;
};

constexpr double kTurnsPerRadian = 0.15915494309189533577;

template <QkNorm kNorm, int N>
Shape ShapeOf(const QkNormRopeFwd& f) {
  const auto dim = [&](int i) { return static_cast<int>(f.x.dim(i)); };
  Shape s{.B = dim(0), .H = dim(2), .K = dim(3)};
  s.half = (s.K + 1) / 2;
  const int64_t places = f.x.dim(1) * (kNorm == QkNorm::kFull ? 1 : s.H);
  Check(places * s.B < int64_t{1} << 31, kOp, ": x ", f.x.ToString(), " is too long for a GPU");
  s.places = static_cast<int>(places);
  s.rotates = f.theta > 0;
  if (s.rotates) s.log2_ratio = -2 * std::log2(f.theta) / s.K;
  s.ratio = std::exp2(s.log2_ratio);
  for (int i = 0; i < kWarp; ++i)
    s.turns_per_position[i] = kTurnsPerRadian * std::exp2(i * N * s.log2_ratio);
  s.offset = f.offset;
  return s;
}

template <QkNorm kNorm>
__device__ HeadIndex HeadAtPlace(const Shape& s, int b, int place) {
  if (kNorm == QkNorm::kFull) return {b, place, 0};
  return {b, place / s.H, place % s.H};
}

// cos and sin of N neighbouring angles. They are counted in turns, in double: what is left of them
// beside whole turns is good to 1e-9 at positions up to 1e6. For bf16, the hardware's sine of that
// is good enough: 2^-21.
template <class T, int N>
struct Rotation {
  double turns_per_position;  // of the first angle
  float cos[N], sin[N];

  __device__ explicit Rotation(double turns) : turns_per_position(turns) {}
  __device__ void MoveTo(const Shape& s, int position) {
    constexpr float kRadiansPerTurn = 6.2831853f;
    double turns = static_cast<double>(s.offset + position) * turns_per_position;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float part = static_cast<float>(turns - rint(turns));
      if constexpr (std::is_same_v<T, BF16>) {
        __sincosf(kRadiansPerTurn * part, &sin[k], &cos[k]);
      } else {
        sincospif(2 * part, &sin[k], &cos[k]);
      }
      turns *= s.ratio;
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

template <class T>
struct ForwardArgs {
  Shape shape;
  HeadRows<const T> x;
  HeadRows<T> y;
  HeadRows<float> rstd;
  const float* w;
  float eps;
};

template <class T>
struct BackwardArgs {
  Shape shape;
  HeadRows<const T> x, dy;
  HeadRows<T> dx;
  HeadRows<const float> rstd;
  const float* w;
  float* dw;  // [blocks, size of w]
  bool accumulate;
};

// Packs of N elements. A team of `lanes` threads, a power of two up to a warp or else the block,
// works on a place. `head_lanes` of them share a head: each has the pack of some i < K/2 and that
// of i + K/2. For kFull a thread has up to kPairs such pairs, in the same columns of heads that are
// lanes / head_lanes apart.
struct Teams {
  int head_lanes, lanes, pairs, threads;
  __host__ __device__ int count() const { return threads / lanes; }
};
constexpr int kMostPairs = 3;
template <int kPairs>
inline constexpr int kThreads = kPairs == 1 ? kRowThreads : kRowThreads / 2;

// Of plans with equally few idle lanes, the one with the most pairs in each; no pairs if none fits.
template <QkNorm kNorm>
Teams PlanTeams(int64_t H, int64_t K, int n) {
  const int packs = static_cast<int>(K / (2 * n));
  Teams best{};
  if (n == 1 || K % (2 * n) != 0 || packs > kWarp) return best;
  const int head_lanes = static_cast<int>(std::bit_ceil(static_cast<uint32_t>(packs))),
            all = head_lanes * (kNorm == QkNorm::kFull ? static_cast<int>(H) : 1);
  for (int pairs = kNorm == QkNorm::kFull ? kMostPairs : 1; pairs > 0; --pairs) {
    const int share = CeilDiv(all, pairs), threads = pairs == 1 ? kThreads<1> : kThreads<2>,
              lanes = share <= kWarp ? static_cast<int>(std::bit_ceil(static_cast<uint32_t>(share)))
                                     : CeilDiv(share, kWarp) * kWarp;
    if (lanes < head_lanes || lanes > threads) continue;
    if (best.pairs == 0 || lanes * pairs < best.lanes * best.pairs)
      best = {head_lanes, lanes, pairs, lanes <= kWarp ? threads : lanes};
  }
  return best;
}

// What a team works on next: blocks share the places, evenly; batch rows of a place follow each
// other.
struct Walk {
  const Shape& shape;
  int teams, items, b, place;

  __device__ Walk(const Shape& s, const Teams& t) : shape(s), teams(t.count()) {
    const int64_t all = Items(s, t), begin = all * blockIdx.x / gridDim.x;
    items = static_cast<int>(all * (blockIdx.x + 1) / gridDim.x - begin);
    b = static_cast<int>(begin % s.B);
    place = static_cast<int>(begin / s.B) * teams + static_cast<int>(threadIdx.x) / t.lanes;
  }
  __host__ __device__ static int64_t Items(const Shape& s, const Teams& t) {
    return int64_t{(s.places + t.count() - 1) / t.count()} * s.B;
  }
  // Whether the place is another one then.
  __device__ bool Next() {
    --items;
    if (++b < shape.B) return false;
    b = 0;
    place += teams;
    return true;
  }
  // What is behind the last place is read as the last one and not written.
  __device__ bool there() const { return place < shape.places; }
  template <QkNorm kNorm>
  __device__ HeadIndex At() const {
    return HeadAtPlace<kNorm>(shape, 0, min(place, shape.places - 1));
  }
};

// A thread's pairs within a place.
template <QkNorm kNorm, int N>
struct Columns {
  int low, high, head, head_step, H;
  bool exist;

  __device__ Columns(const Shape& s, const Teams& t) : H(kNorm == QkNorm::kFull ? s.H : 1) {
    const int lane = threadIdx.x % t.lanes, first = lane % t.head_lanes * N;
    exist = first < s.half;
    low = min(first, s.half - N);
    high = s.half + low;
    head = lane / t.head_lanes;
    head_step = t.lanes / t.head_lanes;
  }
  __device__ int Head(int i) const { return min(head + i * head_step, H - 1); }
  __device__ bool Inside(int i) const { return exist && head + i * head_step < H; }
};

// The rows of a place in a tensor.
template <class T>
struct PlaceRows {
  HeadRows<T> rows;
  T* first;
  __device__ explicit PlaceRows(const HeadRows<T>& r) : rows(r), first(r.data) {}
  __device__ void MoveTo(const HeadIndex& at) { first = rows(at); }
  __device__ T* operator()(int b, int head = 0) const {
    return first + b * rows.b_stride + head * rows.h_stride;
  }
};

constexpr int kStages = 2;  // of inputs: one at work, one on its way; more on their way are slower

// Batch rows of a place that a team has in registers at once.
template <int kPairs>
inline constexpr int kHeldRows = kPairs == 1 ? 4 : 2;

template <class T, QkNorm kNorm, int kPairs>
__global__ void __launch_bounds__(kThreads<kPairs>)
    ForwardPacked(const __grid_constant__ ForwardArgs<T> f, const Teams teams) {
  constexpr int N = kPack<T>, kRows = kHeldRows<kPairs>;
  constexpr bool kFull = kNorm == QkNorm::kFull;
  const Shape& shape = f.shape;
  const Columns<kNorm, N> columns(shape, teams);
  const int groups = (shape.places + teams.count() - 1) / teams.count(),
            begin = static_cast<int>(blockIdx.x) / groups * kRows,
            place = static_cast<int>(blockIdx.x) % groups * teams.count() +
                    static_cast<int>(threadIdx.x) / teams.lanes;
  const bool there = place < shape.places;
  const HeadIndex at = HeadAtPlace<kNorm>(shape, 0, min(place, shape.places - 1));
  const T* const x = f.x(at);
  Words<T, N> low_words[kRows][kPairs], high_words[kRows][kPairs];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const T* const row = x + min(begin + r, shape.B - 1) * f.x.b_stride;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const T* const head = row + columns.Head(i) * f.x.h_stride;
      low_words[r][i] = LoadWords<N>(head + columns.low);
      high_words[r][i] = LoadWords<N>(head + columns.high);
    }
  }
  Rotation<T, N> rotation(shape.turns_per_position[columns.low / N]);
  if (shape.rotates) rotation.MoveTo(shape, at.t);
  const float mean_of = 1.f / (kFull ? shape.H * shape.K : shape.K);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const bool writes = there && begin + r < shape.B;
    float low[N], high[N], rstd = 1;
    if constexpr (kNorm != QkNorm::kNone) {
      float squares = 0;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        Unpack(low_words[r][i], low);
        Unpack(high_words[r][i], high);
        float sum = 0;
#pragma unroll
        for (int k = 0; k < N; ++k) sum += low[k] * low[k] + high[k] * high[k];
        squares += columns.Inside(i) ? sum : 0;
      }
      rstd = rsqrtf(TeamSum(squares, teams.lanes) * mean_of + f.eps);
      if (writes && threadIdx.x % teams.lanes == 0)
        f.rstd(at)[(begin + r) * f.rstd.b_stride] = rstd;
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      Unpack(low_words[r][i], low);
      Unpack(high_words[r][i], high);
      if constexpr (kNorm != QkNorm::kNone) {
        float w_low[N], w_high[N];
        const float* const w = f.w + (kFull ? columns.Head(i) * shape.K : 0);
        Load<N>(w + columns.low, w_low);
        Load<N>(w + columns.high, w_high);
#pragma unroll
        for (int k = 0; k < N; ++k) {
          low[k] *= rstd * w_low[k];
          high[k] *= rstd * w_high[k];
        }
      }
      if (shape.rotates) rotation.Turn(1, low, high);
      if (!writes || !columns.Inside(i)) continue;
      T* const to = f.y(at) + (begin + r) * f.y.b_stride + columns.Head(i) * f.y.h_stride;
      Store<N>(low, to + columns.low);
      Store<N>(high, to + columns.high);
    }
  }
}

// With g = R^T dy (R is the rotation) and n = x rstd:  dx = rstd (g w - n mean(n g w)),
// dw = sum_rows n g.
template <class T, QkNorm kNorm, int kPairs>
__global__ void __launch_bounds__(kThreads<kPairs>, 2)
    BackwardPacked(const __grid_constant__ BackwardArgs<T> a, const Teams teams) {
  constexpr int N = kPack<T>;
  constexpr bool kFull = kNorm == QkNorm::kFull, kNone = kNorm == QkNorm::kNone;
  StartDependents();
  const Shape& shape = a.shape;
  const Columns<kNorm, N> columns(shape, teams);
  const int width = kFull ? shape.H * shape.K : shape.K;
  constexpr int kPacks = kNone ? 2 : 4;
  Stages<kStages> stages(kPacks * kPairs);
  Walk unit(shape, teams), ahead(shape, teams);
  PlaceRows<const T> dy(a.dy), x(a.x);
  PlaceRows<T> dx(a.dx);
  PlaceRows<const float> rstd_at(a.rstd);
  const auto move_ahead = [&] {
    const HeadIndex at = ahead.At<kNorm>();
    dy.MoveTo(at);
    if constexpr (!kNone) x.MoveTo(at);
  };
  move_ahead();
  const auto fetch = [&] {
    if (ahead.items > 0) {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const T* const upstream = dy(ahead.b, columns.Head(i));
        stages.Fetch(kPacks * i, upstream + columns.low);
        stages.Fetch(kPacks * i + 1, upstream + columns.high);
        if constexpr (!kNone) {
          const T* const head = x(ahead.b, columns.Head(i));
          stages.Fetch(kPacks * i + 2, head + columns.low);
          stages.Fetch(kPacks * i + 3, head + columns.high);
        }
      }
      if (ahead.Next()) move_ahead();
    }
    stages.Commit();
  };
  for (int i = 1; i < kStages; ++i) fetch();
  float dw_low[kPairs][N] = {}, dw_high[kPairs][N] = {};
  Rotation<T, N> rotation(shape.turns_per_position[columns.low / N]);
  const float mean_of = 1.f / width;
  for (bool moved = true; unit.items > 0; moved = unit.Next(), stages.Next()) {
    fetch();
    if (moved) {
      const HeadIndex at = unit.At<kNorm>();
      dx.MoveTo(at);
      rstd_at.MoveTo(at);
      if (shape.rotates) rotation.MoveTo(shape, at.t);
    }
    float rstd = 0, mean = 0;
    if constexpr (!kNone) rstd = *rstd_at(unit.b);
    stages.Wait();
    float g_low[kPairs][N], g_high[kPairs][N], x_low[kPairs][N], x_high[kPairs][N];
    float w_low[N], w_high[N];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      stages.template Unpack<T>(kPacks * i, g_low[i]);
      stages.template Unpack<T>(kPacks * i + 1, g_high[i]);
      if (shape.rotates) rotation.Turn(-1, g_low[i], g_high[i]);
    }
    const auto load_w = [&](int i) {
      const float* const w = a.w + (kFull ? columns.Head(i) * shape.K : 0);
      Load<N>(w + columns.low, w_low);
      Load<N>(w + columns.high, w_high);
    };
    if constexpr (!kNone) {
      float dot = 0;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        stages.template Unpack<T>(kPacks * i + 2, x_low[i]);
        stages.template Unpack<T>(kPacks * i + 3, x_high[i]);
        load_w(i);
        const bool counts = unit.there() && columns.Inside(i);
        const float rstd_or_0 = counts ? rstd : 0;
        float sum = 0;
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const float xg_low = x_low[i][k] * g_low[i][k], xg_high = x_high[i][k] * g_high[i][k];
          sum += xg_low * w_low[k] + xg_high * w_high[k];
          dw_low[i][k] += xg_low * rstd_or_0;
          dw_high[i][k] += xg_high * rstd_or_0;
        }
        dot += counts ? sum : 0;
      }
      mean = TeamSum(dot, teams.lanes) * rstd * rstd * mean_of;
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if constexpr (!kNone) {
        if (kPairs > 1) load_w(i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
          g_low[i][k] = rstd * (g_low[i][k] * w_low[k] - x_low[i][k] * mean);
          g_high[i][k] = rstd * (g_high[i][k] * w_high[k] - x_high[i][k] * mean);
        }
      }
      if (!unit.there() || !columns.Inside(i)) continue;
      T* const to = dx(unit.b, columns.Head(i));
      PutPack(g_low[i], to + columns.low, a.accumulate);
      PutPack(g_high[i], to + columns.high, a.accumulate);
    }
  }
  if constexpr (!kNone) {
    // Over the block's teams, in the memory of the stages.
    extern __shared__ uint4 staged[];
    float* const sums = reinterpret_cast<float*>(staged);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (!columns.Inside(i)) continue;
      float* const to = sums + threadIdx.x / teams.lanes * width + columns.Head(i) * shape.K;
      Store<N>(dw_low[i], to + columns.low);
      Store<N>(dw_high[i], to + columns.high);
    }
    __syncthreads();
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
      float sum = 0;
      for (int team = 0; team < teams.count(); ++team) sum += sums[team * width + c];
      a.dw[int64_t{blockIdx.x} * width + c] = sum;
    }
  }
}

// Single elements: a block per place.
constexpr int kAnyThreads = 128;

// f(head, low, high) for the pairs of a place that this thread has; high < 0 for the middle of an
// odd K.
template <QkNorm kNorm, class F>
__device__ void ForPairs(const Shape& s, F&& f) {
  const int pairs = s.half * (kNorm == QkNorm::kFull ? s.H : 1);
  for (int p = threadIdx.x; p < pairs; p += kAnyThreads) {
    const int low = p % s.half, high = s.half + low;
    f(p / s.half, low, high < s.K ? high : -1);
  }
}

template <class T, QkNorm kNorm>
__global__ void __launch_bounds__(kAnyThreads) ForwardAny(const ForwardArgs<T> f) {
  const Shape& s = f.shape;
  const int b = blockIdx.x / s.places;
  const HeadIndex at = HeadAtPlace<kNorm>(s, b, blockIdx.x % s.places);
  const T* const x = f.x(at);
  T* const y = f.y(at);
  float rstd = 1;
  if constexpr (kNorm != QkNorm::kNone) {
    float squares = 0;
    ForPairs<kNorm>(s, [&](int head, int low, int high) {
      const T* const from = x + head * f.x.h_stride;
      const float first = ToFloat(from[low]), second = high < 0 ? 0 : ToFloat(from[high]);
      squares += first * first + second * second;
    });
    rstd =
        rsqrtf(BlockSum<kAnyThreads>(squares) / (kNorm == QkNorm::kFull ? s.H * s.K : s.K) + f.eps);
    if (threadIdx.x == 0) *f.rstd(at) = rstd;
  }
  ForPairs<kNorm>(s, [&](int head, int low, int high) {
    const T* const from = x + head * f.x.h_stride;
    float first[1] = {ToFloat(from[low])}, second[1] = {high < 0 ? 0 : ToFloat(from[high])};
    if constexpr (kNorm != QkNorm::kNone) {
      first[0] *= rstd * f.w[head * s.K + low];
      if (high >= 0) second[0] *= rstd * f.w[head * s.K + high];
    }
    if (s.rotates) {
      Rotation<T, 1> rotation(kTurnsPerRadian * exp2(low * s.log2_ratio));
      rotation.MoveTo(s, at.t);
      rotation.Turn(1, first, second);
    }
    T* const to = y + head * f.y.h_stride;
    to[low] = FromFloat<T>(first[0]);
    if (high >= 0) to[high] = FromFloat<T>(second[0]);
  });
}

template <class T, QkNorm kNorm>
__global__ void __launch_bounds__(kAnyThreads) BackwardAny(const BackwardArgs<T> a) {
  constexpr bool kNone = kNorm == QkNorm::kNone;
  StartDependents();
  const Shape& s = a.shape;
  const int width = kNorm == QkNorm::kFull ? s.H * s.K : s.K;
  float* const dw = a.dw + int64_t{blockIdx.x} * width;  // each thread has its pairs' columns
  if constexpr (!kNone) {
    ForPairs<kNorm>(s, [&](int head, int low, int high) {
      dw[head * s.K + low] = 0;
      if (high >= 0) dw[head * s.K + high] = 0;
    });
  }
  for (int64_t item = blockIdx.x; item < int64_t{s.B} * s.places; item += gridDim.x) {
    const HeadIndex at =
        HeadAtPlace<kNorm>(s, static_cast<int>(item / s.places), static_cast<int>(item % s.places));
    const float rstd = kNone ? 0 : *a.rstd(at);
    // body(head, low, high, g at low and high, x at low and high)
    const auto for_pairs = [&](auto&& body) {
      ForPairs<kNorm>(s, [&](int head, int low, int high) {
        const T* const dy = a.dy(at) + head * a.dy.h_stride;
        float g[1] = {ToFloat(dy[low])}, g_high[1] = {high < 0 ? 0 : ToFloat(dy[high])};
        if (s.rotates) {
          Rotation<T, 1> rotation(kTurnsPerRadian * exp2(low * s.log2_ratio));
          rotation.MoveTo(s, at.t);
          rotation.Turn(-1, g, g_high);
        }
        float x = 0, x_high = 0;
        if constexpr (!kNone) {
          const T* const from = a.x(at) + head * a.x.h_stride;
          x = ToFloat(from[low]);
          if (high >= 0) x_high = ToFloat(from[high]);
        }
        body(head, low, high, g[0], g_high[0], x, x_high);
      });
    };
    float mean = 0;
    if constexpr (!kNone) {
      float dot = 0;
      for_pairs([&](int head, int low, int high, float g, float g_high, float x, float x_high) {
        const int c = head * s.K;
        dot += x * g * a.w[c + low];
        dw[c + low] += x * g * rstd;
        if (high < 0) return;
        dot += x_high * g_high * a.w[c + high];
        dw[c + high] += x_high * g_high * rstd;
      });
      mean = BlockSum<kAnyThreads>(dot) * rstd * rstd / width;
    }
    for_pairs([&](int head, int low, int high, float g, float g_high, float x, float x_high) {
      if constexpr (!kNone) {
        g = rstd * (g * a.w[head * s.K + low] - x * mean);
        if (high >= 0) g_high = rstd * (g_high * a.w[head * s.K + high] - x_high * mean);
      }
      T* const to = a.dx(at) + head * a.dx.h_stride;
      PutFloat(to[low], g, a.accumulate);
      if (high >= 0) PutFloat(to[high], g_high, a.accumulate);
    });
  }
}

// As many blocks as run at once, or as there are items.
template <class Kernel>
int Blocks(const CudaStream& stream, Kernel kernel, int threads, int64_t shared, int64_t items) {
  AllowShared(kernel, shared);
  int resident = 0;
  CudaCheck(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads,
                                                          static_cast<size_t>(shared)),
            kOp);
  return static_cast<int>(
      std::clamp<int64_t>(int64_t{resident} * stream.multiprocessors(), 1, items));
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

// Calls f.template operator()<pairs>().
template <int N, QkNorm kNorm, class F>
void DispatchPairs(int pairs, F&& f) {
  static_assert(kMostPairs == 3);
  if constexpr (N > 1) {
    if (pairs == 1) f.template operator()<1>();
  }
  if constexpr (N > 1 && kNorm == QkNorm::kFull) {
    if (pairs == 2) f.template operator()<2>();
    if (pairs == 3) f.template operator()<3>();
  }
}

}  // namespace

void Run(CudaStream& stream, const QkNormRopeFwd& f) {
  if (f.x.size() == 0) return;
  DispatchPacks(f.x.dtype(), {f.x, f.y, f.w}, [&]<class T, int N>() {
    DispatchNorm(f.norm, [&]<QkNorm kNorm>() {
      const ForwardArgs<T> args{ShapeOf<kNorm, N>(f),    HeadRowsOf<const T>(f.x),
                                HeadRowsOf<T>(f.y),      HeadRowsOf<float>(f.rstd),
                                f.w.Data<const float>(), static_cast<float>(f.eps)};
      const Shape& s = args.shape;
      const Teams teams = PlanTeams<kNorm>(s.H, s.K, N);
      if (teams.pairs == 0) {
        ForwardAny<T, kNorm><<<s.B * s.places, kAnyThreads, 0, stream.handle()>>>(args);
        return;
      }
      DispatchPairs<N, kNorm>(teams.pairs, [&]<int kPairs>() {
        const int blocks = CeilDiv(s.places, teams.count()) * CeilDiv(s.B, kHeldRows<kPairs>);
        ForwardPacked<T, kNorm, kPairs><<<blocks, teams.threads, 0, stream.handle()>>>(args, teams);
      });
    });
  });
  CheckLaunch(kOp);
}

void Run(CudaStream& stream, const QkNormRopeBwd& b) {
  const QkNormRopeFwd& f = b.fwd;
  if (f.x.size() == 0) {
    if (f.w.defined()) SumPartials(stream, nullptr, 0, b.dw);
    return;
  }
  DispatchPacks(f.x.dtype(), {f.x, f.w, b.dy, b.dx}, [&]<class T, int N>() {
    DispatchNorm(f.norm, [&]<QkNorm kNorm>() {
      constexpr bool kNone = kNorm == QkNorm::kNone;
      BackwardArgs<T> args{ShapeOf<kNorm, N>(f),
                           HeadRowsOf<const T>(f.x),
                           HeadRowsOf<const T>(b.dy),
                           HeadRowsOf<T>(b.dx),
                           HeadRowsOf<const float>(f.rstd),
                           f.w.Data<const float>(),
                           nullptr,
                           b.dx.accumulate};
      const Shape& s = args.shape;
      const auto launch = [&](auto kernel, int threads, int64_t shared, int64_t items,
                              const auto&... more) {
        const int blocks = Blocks(stream, kernel, threads, shared, items);
        if (!kNone) args.dw = static_cast<float*>(stream.Scratch(blocks * f.w.dim(0) * int64_t{4}));
        kernel<<<blocks, threads, shared, stream.handle()>>>(args, more...);
        CheckLaunch("qk_norm_rope backward");
        if (!kNone) SumPartials(stream, args.dw, blocks, b.dw);
      };
      const Teams teams = PlanTeams<kNorm>(s.H, s.K, N);
      if (teams.pairs == 0)
        return launch(BackwardAny<T, kNorm>, kAnyThreads, 0, int64_t{s.B} * s.places);
      DispatchPairs<N, kNorm>(teams.pairs, [&]<int kPairs>() {
        constexpr int kPacks = (kNone ? 2 : 4) * kPairs;
        launch(BackwardPacked<T, kNorm, kPairs>, teams.threads,
               Stages<kStages>::Bytes(kPacks, teams.threads), Walk::Items(s, teams), teams);
      });
    });
  });
}

}  // namespace weft
