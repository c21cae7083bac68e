#include <climits>

#include "kernels/base/cuda.cuh"
#include "kernels/short_conv/short_conv.h"

namespace weft {
namespace {

// A thread owns N channels and walks along the tokens of a run, some tokens at a time, with the
// inputs that its taps reach in registers. Sums over a group of channels cross threads, so a block
// holds whole groups.
constexpr int kMaxGroup = 1024;
template <int N>
inline constexpr int kMaxThreads = N == 1 ? kMaxGroup : kMaxGroup / 4;

template <class T>
struct Arguments {
  View3<const T> x, history;
  const T* w;
  int64_t w_channel, w_tap;
  const int32_t* doc_start;
  int64_t doc_batch;
  View3<T> y;
  View3<float> rstd;
  int B, L, C, W;
  bool silu;
  int norm_channels, group;  // without norms a group is one pack
  float eps;
  int lanes;   // threads of a block that have channels
  int folded;  // a power of two that divides the threads of a group: they sum by shuffles
  // backward
  View3<const T> dy;
  View3<T> dx;
  bool accumulate_dx;
  float* dw;  // [gridDim.x, W, C]
};

// Channels and taps of one thread. Tap d is of the token d before the current one.
template <class T, int N, int kWidth>
struct Channels {
  int first;
  bool exist, normed;
  float tap[kWidth][N];

  __device__ explicit Channels(const Arguments<T>& a)
      : first((blockIdx.y * a.lanes + threadIdx.x) * N),
        exist(threadIdx.x < a.lanes && first < a.C),
        normed(exist && first < a.norm_channels) {
#pragma unroll
    for (int d = 0; d < kWidth; ++d) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        tap[d][i] = exist && d < a.W
                        ? ToFloat(a.w[(first + i) * a.w_channel + (a.W - 1 - d) * a.w_tap])
                        : 0;
      }
    }
  }
};

template <int N, class T>
__device__ Pack<T, N> LoadPack(bool there, const T* from) {
  if (there) return *reinterpret_cast<const Pack<T, N>*>(from);
  Pack<T, N> zero;
#pragma unroll
  for (int i = 0; i < N; ++i) zero.at[i] = FromFloat<T>(0);
  return zero;
}

// x[i] is the input of token begin - (kWidth - 1) + i, up to the one before `begin`.
template <class T, int N, int kWidth, int kRows>
__device__ void LoadPast(const Arguments<T>& a, const Channels<T, N, kWidth>& channels, int b,
                         int begin, float (&x)[kRows][N]) {
#pragma unroll
  for (int i = 0; i < kWidth - 1; ++i) {
    const int t = begin - (kWidth - 1) + i;
    const bool old = t < 0 && t >= 1 - a.W && a.history;
    const T* from = old ? &a.history(b, t + a.W - 1, channels.first) : &a.x(b, t, channels.first);
    Load(LoadPack<N>(channels.exist && (old || t >= 0), from).at, x[i]);
  }
}

// How many tokens back token t may look: not before its document.
template <class T>
__device__ int Reach(const Arguments<T>& a, int b, int t) {
  const int start = a.doc_start ? a.doc_start[b * a.doc_batch + min(t, a.L - 1)] : 0;
  return start > 0 ? min(t - start, a.W - 1) : a.W - 1;
}

template <int N, int kWidth>
__device__ void Convolve(const float (&tap)[kWidth][N], const float (*x)[N], int reach,
                         float (&z)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) z[i] = tap[0][i] * x[kWidth - 1][i];
#pragma unroll
  for (int d = 1; d < kWidth; ++d) {
    if (d > reach) continue;
#pragma unroll
    for (int i = 0; i < N; ++i) z[i] += tap[d][i] * x[kWidth - 1 - d][i];
  }
}

__device__ float Sigmoid(float z) { return FastReciprocal(1 + FastExp(-z)); }

// Sums over the threads of a group, of several numbers at once, in a fixed order. Every thread of
// the block calls it with the `round` after the last.
template <int kNumbers, int kThreads, class T>
__device__ void SumOverGroup(const Arguments<T>& a, int threads, int round, float (&x)[kNumbers]) {
  for (int offset = 1; offset < a.folded; offset *= 2) {
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) x[k] += __shfl_xor_sync(~0u, x[k], offset);
  }
  if (a.folded == threads) return;
  __shared__ Pack<float, kNumbers> sums[2][kThreads];
  Pack<float, kNumbers>* parts = sums[round % 2];
  if (threadIdx.x % a.folded == 0) Store(x, parts[threadIdx.x / a.folded].at);
  __syncthreads();
  if (threadIdx.x >= a.lanes) return;
  const int parts_of_group = threads / a.folded, first = threadIdx.x / threads * parts_of_group;
  Load(parts[first].at, x);
  for (int p = 1; p < parts_of_group; ++p) {
    float part[kNumbers];
    Load(parts[first + p].at, part);
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) x[k] += part[k];
  }
}

template <class T, int N, int kWidth>
__global__ void __launch_bounds__(kMaxThreads<N>)
    Forward(const __grid_constant__ Arguments<T> a, int run) {
  constexpr int kTokens = 4, kPast = kWidth - 1;
  const Channels<T, N, kWidth> channels(a);
  const int c = channels.first, threads = a.group / N;
  const bool norms = blockIdx.y * a.lanes * N < a.norm_channels;
  const int runs = (a.L + run - 1) / run, b = blockIdx.x / runs;
  const int begin = blockIdx.x % runs * run, end = min(begin + run, a.L);
  float x[kPast + kTokens][N];
  LoadPast(a, channels, b, begin, x);
  Pack<T, N> next[kTokens];
  const auto load = [&](int t) {
#pragma unroll
    for (int k = 0; k < kTokens; ++k)
      next[k] = LoadPack<N>(channels.exist && t + k < end, &a.x(b, t + k, c));
  };
  load(begin);
  for (int t = begin, round = 0; t < end; t += kTokens, ++round) {
#pragma unroll
    for (int k = 0; k < kTokens; ++k) Load(next[k].at, x[kPast + k]);
    load(t + kTokens);
    float s[kTokens][N], scale[kTokens];
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      Convolve<N, kWidth>(channels.tap, x + k, Reach(a, b, t + k), s[k]);
      if (a.silu) {
#pragma unroll
        for (int i = 0; i < N; ++i) s[k][i] *= Sigmoid(s[k][i]);
      }
      scale[k] = 0;
#pragma unroll
      for (int i = 0; i < N; ++i) scale[k] += s[k][i] * s[k][i];
    }
    if (norms) SumOverGroup<kTokens, kMaxThreads<N>>(a, threads, round, scale);
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      if (!channels.exist || t + k >= end) break;
      if (channels.normed) {
        scale[k] = rsqrtf(scale[k] + a.eps);
        if (a.rstd && threadIdx.x % threads == 0) a.rstd(b, t + k, c / a.group) = scale[k];
#pragma unroll
        for (int i = 0; i < N; ++i) s[k][i] *= scale[k];
      }
      Store(s[k], &a.y(b, t + k, c));
    }
#pragma unroll
    for (int i = 0; i < kPast; ++i) {
#pragma unroll
      for (int j = 0; j < N; ++j) x[i][j] = x[kTokens + i][j];
    }
  }
}

// z is computed again; with s = silu(z), y = s rstd:
//   ds = rstd (dy - s rstd^2 <s, dy>),  dz = ds silu'(z),
//   dx_t = sum_d tap_d dz_{t+d},  dtap_d = sum_t dz_t x_{t-d}
// A block takes every gridDim.x-th run. What its last tokens owe to the next run's dz is computed
// twice.
template <class T, int N, int kWidth>
__global__ void __launch_bounds__(kMaxThreads<N>)
    Backward(const __grid_constant__ Arguments<T> a, int run) {
  constexpr int kTokens = 4, kPast = kWidth - 1;
  const Channels<T, N, kWidth> channels(a);
  const int c = channels.first, threads = a.group / N;
  const bool norms = blockIdx.y * a.lanes * N < a.norm_channels;
  const int runs = (a.L + run - 1) / run;
  float dtap[kWidth][N] = {};
  int round = 0;
  for (int piece = blockIdx.x; piece < a.B * runs; piece += gridDim.x) {
    const int b = piece / runs, begin = piece % runs * run, end = min(begin + run, a.L);
    float x[kPast + kTokens][N], dx[kPast + kTokens][N] = {};
    LoadPast(a, channels, b, begin, x);
    Pack<T, N> next_x[kTokens], next_dy[kTokens];
    float next_rstd[kTokens];
    const auto load = [&](int t) {
#pragma unroll
      for (int k = 0; k < kTokens; ++k) {
        const bool there = t + k < min(end + kPast, a.L);
        next_x[k] = LoadPack<N>(channels.exist && there, &a.x(b, t + k, c));
        next_dy[k] = LoadPack<N>(channels.exist && there, &a.dy(b, t + k, c));
        next_rstd[k] = channels.normed && there ? a.rstd(b, t + k, c / a.group) : 1;
      }
    };
    load(begin);
    for (int t = begin; t < end + kPast; t += kTokens, ++round) {
      // dz = rstd (straight - s_grad <s, dy> rstd^2)
      float straight[kTokens][N], s_grad[kTokens][N], dot[kTokens], rstd[kTokens];
      int reach[kTokens];
#pragma unroll
      for (int k = 0; k < kTokens; ++k) {
        Load(next_x[k].at, x[kPast + k]);
        Load(next_dy[k].at, straight[k]);
        rstd[k] = next_rstd[k];
        reach[k] = Reach(a, b, t + k);
      }
      load(t + kTokens);
#pragma unroll
      for (int k = 0; k < kTokens; ++k) {
        Convolve<N, kWidth>(channels.tap, x + k, reach[k], s_grad[k]);
        dot[k] = 0;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          float s = s_grad[k][i], grad = 1;
          if (a.silu) {
            const float sigmoid = Sigmoid(s);
            s *= sigmoid;
            grad = sigmoid + s * (1 - sigmoid);
          }
          dot[k] += s * straight[k][i];
          s_grad[k][i] = s * grad;
          straight[k][i] *= grad;
        }
      }
      if (norms) SumOverGroup<kTokens, kMaxThreads<N>>(a, threads, round, dot);
#pragma unroll
      for (int k = 0; k < kTokens; ++k) {
        const float scale = channels.normed ? dot[k] * rstd[k] * rstd[k] : 0;
        float dz[N];
#pragma unroll
        for (int i = 0; i < N; ++i) dz[i] = rstd[k] * (straight[k][i] - s_grad[k][i] * scale);
#pragma unroll
        for (int d = 0; d < kWidth; ++d) {
          if (d > reach[k]) continue;
#pragma unroll
          for (int i = 0; i < N; ++i) dx[kPast + k - d][i] += channels.tap[d][i] * dz[i];
          if (t + k >= end) continue;
#pragma unroll
          for (int i = 0; i < N; ++i) dtap[d][i] += dz[i] * x[kPast + k - d][i];
        }
      }
#pragma unroll
      for (int k = 0; k < kTokens; ++k) {
        const int done = t + k - kPast;
        if (!channels.exist || done < begin || done >= end) continue;
        T* to = &a.dx(b, done, c);
        if (a.accumulate_dx) {
          float before[N];
          Load(to, before);
#pragma unroll
          for (int i = 0; i < N; ++i) dx[k][i] += before[i];
        }
        Store(dx[k], to);
      }
#pragma unroll
      for (int i = 0; i < kPast + kTokens; ++i) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
          if (i < kPast) x[i][j] = x[kTokens + i][j];
          dx[i][j] = i < kPast ? dx[kTokens + i][j] : 0;
        }
      }
    }
  }
#pragma unroll
  for (int d = 0; d < kWidth; ++d) {
    if (channels.exist && d < a.W)
      Store(dtap[d], a.dw + (int64_t{blockIdx.x} * a.W + a.W - 1 - d) * a.C + c);
  }
}

// dw (+)= sum of `parts` blocks of [W, C].
constexpr int kSumWarps = 8;
__global__ void __launch_bounds__(kWarp* kSumWarps)
    SumTaps(const float* part, int parts, int W, int C, float* dw, int64_t channel, int64_t tap,
            bool accumulate) {
  const int64_t i = int64_t{blockIdx.x} * kWarp + threadIdx.x, n = int64_t{W} * C;
  float sum = 0;
#pragma unroll 4
  for (int p = threadIdx.y; p < parts && i < n; p += kSumWarps) sum += part[p * n + i];
  __shared__ float sums[kSumWarps][kWarp];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= n) return;
#pragma unroll
  for (int w = 1; w < kSumWarps; ++w) sum += sums[w][threadIdx.x];
  PutFloat(dw[i % C * channel + i / C * tap], sum, accumulate);
}

// The last W - 1 inputs. Oldest first: where `to` is history's memory, every row is read before it
// is overwritten.
template <class T>
__global__ void KeepHistory(const __grid_constant__ Arguments<T> a, const View3<T> to) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x, b = blockIdx.y;
  if (c >= a.C) return;
  const int start = a.doc_start && a.L > 0 ? a.doc_start[b * a.doc_batch + a.L - 1] : 0;
  for (int j = 0; j < a.W - 1; ++j) {
    const int t = a.L - (a.W - 1) + j;
    T value = FromFloat<T>(0);
    if (t >= 0) {
      if (t >= start) value = a.x(b, t, c);
    } else if (a.history && start == 0) {
      value = a.history(b, t + a.W - 1, c);
    }
    to(b, j, c) = value;
  }
}

// How blocks share the channels: `lanes` of `threads` threads work.
struct Blocks {
  int threads = 0, lanes = 0, across = 0;
};

// The smallest block of whole groups that leaves the fewest threads idle.
template <int N>
Blocks BlocksFor(int channels, int group) {
  const int lanes = CeilDiv(channels, N), unit = group / N;
  Blocks best;
  for (int threads = 2 * kWarp; threads <= kMaxThreads<N>; threads += kWarp) {
    const int used = threads / unit * unit;
    if (used == 0) continue;
    const int across = CeilDiv(lanes, used);
    if (best.threads == 0 || across * threads < best.across * best.threads)
      best = {threads, used, across};
  }
  return best;
}

template <int N, class T>
Arguments<T> ArgumentsOf(const ShortConvFwd& f, Blocks& blocks) {
  const auto i = [](int64_t n) { return static_cast<int>(n); };
  Arguments<T> a{.x = View3<const T>(f.x.As<const T, 3>()),
                 .history = View3<const T>(f.history.As<const T, 3>())};
  a.w = f.w.Data<const T>(), a.w_channel = f.w.stride(0), a.w_tap = f.w.stride(1);
  a.doc_start = f.doc_start.Data<const int32_t>();
  a.doc_batch = f.doc_start.defined() ? f.doc_start.stride(0) : 0;
  a.y = View3<T>(f.y.As<T, 3>());
  a.rstd = View3<float>(f.rstd.As<float, 3>());
  a.B = i(f.x.dim(0)), a.L = i(f.x.dim(1)), a.C = i(f.x.dim(2)), a.W = i(f.w.dim(1));
  a.silu = f.silu;
  a.norm_channels = i(f.norm_channels);
  a.group = f.norm_channels > 0 ? i(f.norm_group) : N;
  a.eps = static_cast<float>(f.norm_eps);
  blocks = BlocksFor<N>(a.C, a.group);
  a.lanes = blocks.lanes;
  a.folded = 1;
  while (a.folded < kWarp && a.group / N % (2 * a.folded) == 0) a.folded *= 2;
  return a;
}

// Calls launch.operator()<T, N, width>().
template <class F>
void DispatchConv(const ShortConvFwd& f, const TensorView& dy, const TensorView& dx, F&& launch) {
  Check(f.norm_channels == 0 || f.norm_group <= kMaxGroup, "short_conv: norm_group is ",
        f.norm_group, ", on a GPU at most ", kMaxGroup);
  Check(f.x.size() == 0 || f.x.size() / f.x.dim(2) <= INT_MAX - 1024, "short_conv: x ",
        f.x.ToString(), " has too many tokens for a GPU");
  if (f.x.size() == 0) return;
  DispatchCuda(f.x.dtype(), [&]<class T>() {
    constexpr int kN = 4;  // 8 bytes of bf16, so that few registers hold several tokens
    bool packable = f.norm_channels == 0 || f.norm_group % kN == 0;
    for (const TensorView* v : {&f.x, &f.y, &f.history, &dy, &dx})
      packable = packable && Packable<T>(*v, kN);
    const auto width = [&]<int N>() {
      f.w.dim(1) <= 4 ? launch.template operator()<T, N, 4>()
                      : launch.template operator()<T, N, kShortConvMaxWidth>();
    };
    packable ? width.template operator()<kN>() : width.template operator()<1>();
    CheckLaunch("short_conv");
  });
}

}  // namespace

void Run(CudaStream& stream, const ShortConvFwd& f) {
  DispatchConv(f, {}, {}, [&]<class T, int N, int kWidth>() {
    constexpr int kRun = 32;
    Blocks blocks;
    const Arguments<T> a = ArgumentsOf<N, T>(f, blocks);
    const dim3 grid(static_cast<unsigned>(a.B * CeilDiv(a.L, kRun)), blocks.across);
    Forward<T, N, kWidth><<<grid, blocks.threads, 0, stream.handle()>>>(a, kRun);
    if (!f.history_out.defined()) return;
    constexpr int kThreads = 128;
    KeepHistory<T><<<dim3(CeilDiv(a.C, kThreads), a.B), kThreads, 0, stream.handle()>>>(
        a, View3<T>(f.history_out.As<T, 3>()));
  });
}

void Run(CudaStream& stream, const ShortConvBwd& g) {
  DispatchConv(g.fwd, g.dy, g.dx, [&]<class T, int N, int kWidth>() {
    constexpr int kRun = 64;
    Blocks blocks;
    Arguments<T> a = ArgumentsOf<N, T>(g.fwd, blocks);
    a.dy = View3<const T>(g.dy.As<const T, 3>());
    a.dx = View3<T>(g.dx.As<T, 3>());
    a.accumulate_dx = g.dx.accumulate;
    const auto kernel = Backward<T, N, kWidth>;
    // One wave of blocks, each with as many runs as any other, keeps the sums of dw few.
    int resident = 0;
    CudaCheck(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, blocks.threads, 0),
              "short_conv");
    const int pieces = a.B * CeilDiv(a.L, kRun);
    const int columns = std::max(1, resident * stream.multiprocessors() / blocks.across);
    const int parts = CeilDiv(pieces, CeilDiv(pieces, columns));
    a.dw = static_cast<float*>(stream.Scratch(int64_t{parts} * a.W * a.C * 4));
    kernel<<<dim3(parts, blocks.across), blocks.threads, 0, stream.handle()>>>(a, kRun);
    CheckLaunch("short_conv");
    SumTaps<<<CeilDiv(int64_t{a.W} * a.C, kWarp), dim3(kWarp, kSumWarps), 0, stream.handle()>>>(
        a.dw, parts, a.W, a.C, g.dw.Data<float>(), g.dw.stride(0), g.dw.stride(1), g.dw.accumulate);
  });
}

}  // namespace weft
