#include <climits>
#include <utility>

#include "kernels/base/cuda_rows.cuh"
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
  int B, L, C, W, run;
  bool silu;
  int norm_channels, group;  // without norms a group is one pack
  float eps;
  int across;  // blocks that share a token's channels: neighbours, so that rows are read as a whole
  int lanes;   // threads of a block that have channels
  int folded;  // a power of two that divides the threads of a group: they sum by shuffles
  // backward
  View3<const T> dy;
  View3<T> dx;
  bool accumulate_dx;
  float* dw;  // [parts, W, C]
};

// Rows of one sequence, from channel c on.
template <class T>
class SequenceRows {
 public:
  __device__ SequenceRows(const View3<T>& view, int b, int c)
      : first_(reinterpret_cast<Byte*>(&view(b, 0, c))),
        stride_(static_cast<int>(view.stride[1] * sizeof(T))) {}
  __device__ T* operator()(int t) const {
    return reinterpret_cast<T*>(first_ + int64_t{t} * stride_);
  }
  __device__ T* After(T* row, int tokens) const {
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(row) + tokens * stride_);
  }

 private:
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  Byte* first_;
  int stride_;
};

// Channels and taps of one thread. Tap d is of the token d before the current one. A thread without
// channels computes those of the first and stores nothing.
template <class T, int N, int kWidth>
struct Channels {
  bool exist, normed;
  int first, of_block, group;
  float tap[kWidth][N];

  __device__ explicit Channels(const Arguments<T>& a) {
    of_block = blockIdx.x % a.across * a.lanes * N;
    const int c = of_block + threadIdx.x * N;
    exist = threadIdx.x < a.lanes && c < a.C;
    normed = exist && c < a.norm_channels;
    first = exist ? c : 0;
    group = normed ? c / a.group : 0;
#pragma unroll
    for (int d = 0; d < kWidth; ++d) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int64_t channel = first + i, j = a.W - 1 - d;
        tap[d][i] = d < a.W ? ToFloat(a.w[channel * a.w_channel + j * a.w_tap]) : 0;
      }
    }
  }
};

// The rows of some tokens in registers: token t is in row t - begin of the ring, modulo its size,
// where that is known to the compiler. There is room for the tokens that a step computes and those
// before them that their taps reach.
constexpr int kTokens = 4;  // of a step
// Of inputs: the steps that are on their way, and one. More would be slower.
constexpr int kForwardStages = 4, kBackwardStages = 2;
template <class T, int N, int kStages>
using Inputs = Stages<kStages, sizeof(T) * N>;
template <int kWidth>
inline constexpr int kRing = (kWidth - 1 + kTokens - 1) / kTokens* kTokens + kTokens;
template <int N, int kWidth>
using Ring = float[kRing<kWidth>][N];

// Calls f.operator()<k>() for k in [0, n).
template <int n, class F>
__device__ void Unroll(F&& f) {
  [&]<int... k>(std::integer_sequence<int, k...>) { (f.template operator()<k>(), ...); }
  (std::make_integer_sequence<int, n>{});
}

// Calls step.operator()<row of token t>(t) for t from begin to end, in whole rounds of the ring.
template <int kWidth, class Step>
__device__ void ForSteps(int begin, int end, Step&& step) {
  for (int t = begin; t < end; t += kRing<kWidth>) {
    Unroll<kRing<kWidth> / kTokens>(
        [&]<int k>() { step.template operator()<k * kTokens>(t + k * kTokens); });
  }
}

// The rows before token begin.
template <int N, int kWidth, class T>
__device__ void LoadPast(const Arguments<T>& a, int b, int begin, int c, Ring<N, kWidth>& x) {
#pragma unroll
  for (int i = 1; i < kWidth; ++i) {
    const int t = begin - i;
    const bool old = t < 0 && t >= 1 - a.W && a.history;
    const T* from = old ? &a.history(b, t + a.W - 1, c) : &a.x(b, t, c);
    Unpack(old || t >= 0 ? LoadWords<N>(from) : Words<T, N>{}, x[kRing<kWidth> - i]);
  }
}

// How many tokens back token t may look: not before its document. Taps behind the width are zero.
template <bool kDocuments, int kPast, class T>
__device__ int Reach(const Arguments<T>& a, int b, int t) {
  if (!kDocuments) return kPast;
  const int start = a.doc_start[b * a.doc_batch + min(t, a.L - 1)];
  return start > 0 ? t - start : kPast;
}

// z = sum of tap_d x_{t-d}, for the token in row kRow.
template <int kRow, int N, int kWidth>
__device__ void Convolve(const float (&tap)[kWidth][N], const Ring<N, kWidth>& x, int reach,
                         float (&z)[N]) {
#pragma unroll
  for (int d = 0; d < kWidth; ++d) {
    if (d > reach) break;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float term = tap[d][i] * x[(kRow + kRing<kWidth> - d) % kRing<kWidth>][i];
      z[i] = d == 0 ? term : z[i] + term;
    }
  }
}

__device__ float Sigmoid(float z) { return FastReciprocal(1 + FastExp(-z)); }

// Sums over the threads of a group, of several numbers at once, in a fixed order: by shuffles over
// a power of two of them, by shared memory over the rest. Every thread of the block calls it;
// neighbouring warps that hold whole groups wait for each other.
template <int kNumbers, int kThreads>
class GroupSum {
 public:
  template <class T>
  __device__ GroupSum(const Arguments<T>& a, int threads)
      : folded_(a.folded),
        parts_(threads / a.folded),
        mine_(threadIdx.x % a.folded == 0 ? static_cast<int>(threadIdx.x / a.folded) : -1),
        first_(threadIdx.x / threads * parts_),
        barrier_(threadIdx.x / (parts_ * kWarp)),
        waiting_(min(parts_ * kWarp, blockDim.x - barrier_ * parts_ * kWarp)) {}

  __device__ void operator()(float (&x)[kNumbers]) {
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      if (offset >= folded_) break;
#pragma unroll
      for (int k = 0; k < kNumbers; ++k) x[k] += __shfl_xor_sync(~0u, x[k], offset);
    }
    if (parts_ == 1) return;
    // Two buffers: who is a call ahead cannot overwrite what others still read.
    __shared__ Pack<float, kNumbers> sums[2][kThreads];
    buffer_ ^= 1;
    if (mine_ >= 0) Store(x, sums[buffer_][mine_].at);
    asm volatile("bar.sync %0, %1;" ::"r"(barrier_), "r"(waiting_) : "memory");
    Load(sums[buffer_][first_].at, x);
    const auto add = [&](const float(&part)[kNumbers]) {
#pragma unroll
      for (int k = 0; k < kNumbers; ++k) x[k] += part[k];
    };
    float part[2][kNumbers];
    int p = 1;
    if (parts_ % 2 == 0) {
      Load(sums[buffer_][first_ + p++].at, part[0]);
      add(part[0]);
    }
#pragma unroll 1
    for (; p < parts_; p += 2) {
      Load(sums[buffer_][first_ + p].at, part[0]);
      Load(sums[buffer_][first_ + p + 1].at, part[1]);
      add(part[0]);
      add(part[1]);
    }
  }

 private:
  int folded_, parts_, mine_, first_, barrier_, waiting_, buffer_ = 0;
};

// Blocks take every parts-th run of every sequence; neighbouring blocks share its channels.
struct Runs {
  template <class T>
  __device__ explicit Runs(const Arguments<T>& a)
      : per_sequence((a.L + a.run - 1) / a.run),
        all(a.B * per_sequence),
        parts(gridDim.x / a.across),
        part(blockIdx.x / a.across) {}
  int per_sequence, all, parts, part;
};

// The rows of the tokens of a step; behind the sequence, zeros.
template <class T, class Inputs>
__device__ void FetchStep(const Arguments<T>& a, const SequenceRows<const T>& rows, int t,
                          const Inputs& inputs, int pack) {
  if (t + kTokens <= a.L) {
    const T* row = rows(t);
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      inputs.Fetch(pack + k, row);
      row = rows.After(row, 1);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kTokens; ++k)
      inputs.Fetch(pack + k, rows(min(t + k, a.L - 1)), t + k < a.L);
  }
}

template <class T, int N, int kWidth, bool kDocuments>
__global__ void __launch_bounds__(kMaxThreads<N>) Forward(const __grid_constant__ Arguments<T> a) {
  constexpr int kPast = kWidth - 1;
  const Channels<T, N, kWidth> channels(a);
  const int c = channels.first, threads = a.group / N;
  const bool norms = channels.of_block < a.norm_channels;
  const bool writes_rstd = a.rstd && channels.normed && threadIdx.x % threads == 0;
  GroupSum<kTokens, kMaxThreads<N>> sum_over_group(a, threads);
  const Runs runs(a);
  for (int run = runs.part; run < runs.all; run += runs.parts) {
    const int b = run / runs.per_sequence, begin = run % runs.per_sequence * a.run;
    const int end = min(begin + a.run, a.L);
    const int y_end = channels.exist ? end : 0, rstd_end = writes_rstd ? end : 0;
    const SequenceRows<const T> x_at(a.x, b, c);
    const SequenceRows<T> y_at(a.y, b, c);
    const SequenceRows<float> rstd_at(a.rstd, b, channels.group);
    Ring<N, kWidth> x;
    LoadPast<N, kWidth>(a, b, begin, c, x);
    Inputs<T, N, kForwardStages> inputs(kTokens);
    int ahead = begin;
    const auto fetch = [&] {
      if (ahead < end) FetchStep(a, x_at, ahead, inputs, 0);
      inputs.Commit();
      ahead += kTokens;
    };
    for (int s = 1; s < kForwardStages; ++s) fetch();
    ForSteps<kWidth>(begin, end, [&]<int kRow>(int t) {
      fetch();
      inputs.Wait();
#pragma unroll
      for (int k = 0; k < kTokens; ++k) inputs.template Unpack<T>(k, x[kRow + k]);
      inputs.Next();
      float s[kTokens][N];
      Unroll<kTokens>([&]<int k>() {
        Convolve<kRow + k>(channels.tap, x, Reach<kDocuments, kPast>(a, b, t + k), s[k]);
      });
      if (a.silu) {
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
#pragma unroll
          for (int i = 0; i < N; ++i) s[k][i] *= Sigmoid(s[k][i]);
        }
      }
      if (norms) {
        float scale[kTokens];
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
          scale[k] = 0;
#pragma unroll
          for (int i = 0; i < N; ++i) scale[k] += s[k][i] * s[k][i];
        }
        sum_over_group(scale);
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
          scale[k] = channels.normed ? rsqrtf(scale[k] + a.eps) : 1;
          if (t + k < rstd_end) *rstd_at(t + k) = scale[k];
#pragma unroll
          for (int i = 0; i < N; ++i) s[k][i] *= scale[k];
        }
      }
#pragma unroll
      for (int k = 0; k < kTokens; ++k) {
        if (t + k < y_end) Store(s[k], y_at(t + k));
      }
    });
  }
}

// Few enough for kMaxThreads, and for four small blocks per processor at the usual widths.
template <int N, int kWidth>
inline constexpr int kBackwardRegisters = N == 1        ? 64
                                          : kWidth <= 4 ? 168
                                                        : 255;

// z is computed again; with s = silu(z), y = s rstd:
//   ds = rstd (dy - s rstd^2 <s, dy>),  dz = ds silu'(z),
//   dx_t = sum_d tap_d dz_{t+d},  dtap_d = sum_t dz_t x_{t-d}
// The dz that the last tokens of a run need of the next run are computed twice.
template <class T, int N, int kWidth, bool kDocuments>
__global__ void __maxnreg__((kBackwardRegisters<N, kWidth>))
    Backward(const __grid_constant__ Arguments<T> a) {
  constexpr int kPast = kWidth - 1, kSize = kRing<kWidth>;
  StartDependents();
  const Channels<T, N, kWidth> channels(a);
  const int c = channels.first, threads = a.group / N;
  GroupSum<kTokens, kMaxThreads<N>> sum_over_group(a, threads);
  const bool norms = channels.of_block < a.norm_channels;
  float dtap[kWidth][N] = {};
  const Runs runs(a);
  for (int run = runs.part; run < runs.all; run += runs.parts) {
    const int b = run / runs.per_sequence, begin = run % runs.per_sequence * a.run;
    const int end = min(begin + a.run, a.L);
    const SequenceRows<const T> x_at(a.x, b, c), dy_at(a.dy, b, c);
    const SequenceRows<T> dx_at(a.dx, b, c);
    const SequenceRows<float> rstd_at(a.rstd, b, channels.group);
    Ring<N, kWidth> x, dx = {};
    LoadPast<N, kWidth>(a, b, begin, c, x);
    Inputs<T, N, kBackwardStages> inputs(2 * kTokens);
    int ahead = begin;
    const auto fetch = [&] {
      if (ahead < end + kPast) {
        FetchStep(a, x_at, ahead, inputs, 0);
        FetchStep(a, dy_at, ahead, inputs, kTokens);
      }
      inputs.Commit();
      ahead += kTokens;
    };
    for (int s = 1; s < kBackwardStages; ++s) fetch();
    float rstd_ahead[kTokens];
    const auto fetch_rstd = [&](int t) {
#pragma unroll
      for (int k = 0; k < kTokens; ++k) {
        if (norms) rstd_ahead[k] = *rstd_at(min(t + k, a.L - 1));
      }
    };
    fetch_rstd(begin);
    ForSteps<kWidth>(begin, end + kPast, [&]<int kRow>(int t) {
      fetch();
      inputs.Wait();
      // s begins as z, dz as dy and ends as rstd (dy - s rstd^2 <s, dy>) grad.
      float s[kTokens][N], dz[kTokens][N], dot[kTokens] = {}, rstd[kTokens];
#pragma unroll
      for (int k = 0; k < kTokens; ++k) {
        inputs.template Unpack<T>(k, x[kRow + k]);
        inputs.template Unpack<T>(kTokens + k, dz[k]);
        rstd[k] = rstd_ahead[k];
      }
      inputs.Next();
      fetch_rstd(t + kTokens);
      // body(k, i) for the elements of the step
      const auto for_step = [&](auto&& body) {
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
#pragma unroll
          for (int i = 0; i < N; ++i) body(k, i);
        }
      };
      Unroll<kTokens>([&]<int k>() {
        Convolve<kRow + k>(channels.tap, x, Reach<kDocuments, kPast>(a, b, t + k), s[k]);
      });
      float grad[kTokens][N];
      if (!a.silu) {
        for_step([&](int k, int i) { grad[k][i] = 1; });
      } else {
        for_step([&](int k, int i) {
          const float sigmoid = Sigmoid(s[k][i]);
          s[k][i] *= sigmoid;
          grad[k][i] = sigmoid + s[k][i] * (1 - sigmoid);
        });
      }
      if (norms) {
        for_step([&](int k, int i) {
          dot[k] += s[k][i] * dz[k][i];
          s[k][i] *= grad[k][i];
        });
      }
      for_step([&](int k, int i) { dz[k][i] *= grad[k][i]; });
      if (norms) {
        sum_over_group(dot);
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
          rstd[k] = channels.normed ? rstd[k] : 1;
          dot[k] = channels.normed ? dot[k] * rstd[k] * rstd[k] : 0;
        }
        for_step([&](int k, int i) { dz[k][i] = rstd[k] * (dz[k][i] - s[k][i] * dot[k]); });
      }
      // body(k, d, the row of the token that tap d of token t + k reaches)
      const auto for_taps = [&](auto&& body) {
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
          const int reach = Reach<kDocuments, kPast>(a, b, t + k);
#pragma unroll
          for (int d = 0; d < kWidth; ++d) {
            if (d > reach) break;
            body(k, d, (kRow + k + kSize - d) % kSize);
          }
        }
      };
      for_taps([&](int k, int d, int row) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float term = channels.tap[d][i] * dz[k][i];
          dx[row][i] = d == 0 ? term : dx[row][i] + term;
        }
      });
      // Those of the next run belong to its dtap.
      if (t < end) {
        for_taps([&](int k, int d, int row) {
#pragma unroll
          for (int i = 0; i < N; ++i) dtap[d][i] += dz[k][i] * x[row][i];
        });
      }
      const auto for_done = [&](auto&& body) {
        const unsigned own = channels.exist ? end - begin : 0;
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
          const int done = t + k - kPast, row = (kRow + k + kSize - kPast) % kSize;
          if (static_cast<unsigned>(done - begin) < own) body(dx_at(done), dx[row]);
        }
      };
      if (a.accumulate_dx) {
        for_done([&](const T* from, float(&sum)[N]) {
          float before[N];
          Load(from, before);
#pragma unroll
          for (int i = 0; i < N; ++i) sum[i] += before[i];
        });
      }
      for_done([&](T* to, const float(&sum)[N]) { Store(sum, to); });
    });
  }
#pragma unroll
  for (int d = 0; d < kWidth; ++d) {
    if (channels.exist && d < a.W)
      Store(dtap[d], a.dw + (int64_t{runs.part} * a.W + a.W - 1 - d) * a.C + c);
  }
}

// dw (+)= sum of `parts` blocks of [W, C].
constexpr int kSumWarps = 8;
__global__ void __launch_bounds__(kWarp* kSumWarps)
    SumTaps(const float* part, int parts, int W, int C, float* dw, int64_t channel, int64_t tap,
            bool accumulate) {
  const int64_t i = int64_t{blockIdx.x} * kWarp + threadIdx.x, n = int64_t{W} * C;
  float sum = 0;
  AwaitKernelBefore();
#pragma unroll 16
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

// The smallest block of whole groups, of at least `warps` warps, that leaves the fewest threads
// idle.
template <int N>
Blocks BlocksFor(int channels, int group, int warps) {
  const int lanes = CeilDiv(channels, N), unit = group / N;
  Blocks best;
  for (int threads = warps * kWarp; threads <= kMaxThreads<N>; threads += kWarp) {
    const int used = threads / unit * unit;
    if (used == 0) continue;
    const int across = CeilDiv(lanes, used);
    if (best.threads == 0 || across * threads < best.across * best.threads)
      best = {threads, used, across};
  }
  return best;
}

template <int N, class T>
Arguments<T> ArgumentsOf(const ShortConvFwd& f, int warps, Blocks& blocks) {
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
  blocks = BlocksFor<N>(a.C, a.group, warps);
  a.lanes = blocks.lanes, a.across = blocks.across;
  a.folded = 1;
  while (a.folded < kWarp && a.group / N % (2 * a.folded) == 0) a.folded *= 2;
  return a;
}

// Calls launch.operator()<T, N, width, documents>().
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
    const auto documents = [&]<int N, int kWidth>() {
      f.doc_start.defined() ? launch.template operator()<T, N, kWidth, true>()
                            : launch.template operator()<T, N, kWidth, false>();
    };
    const auto width = [&]<int N>() {
      f.w.dim(1) <= 4 ? documents.template operator()<N, 4>()
                      : documents.template operator()<N, kShortConvMaxWidth>();
    };
    packable ? width.template operator()<kN>() : width.template operator()<1>();
    CheckLaunch("short_conv");
  });
}

// At most `waves` times as many blocks, with `shared` bytes each, as run at once: how long runs
// are, in whole steps, and how many blocks share them, so that the block that has the most is done
// soon. `beyond`: tokens that a run computes behind its last.
template <int kWidth, class T, class Kernel>
int PartsFor(CudaStream& stream, Kernel kernel, Arguments<T>& a, int threads, int64_t shared,
             int waves, int beyond) {
  AllowShared(kernel, shared);
  int resident = 0;
  CudaCheck(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads,
                                                          static_cast<size_t>(shared)),
            "short_conv");
  const int most = std::max(1, waves * resident * stream.multiprocessors() / a.across);
  constexpr int kShortest = 32, kBegin = 16;  // tokens in whose time a run begins
  int64_t best = INT64_MAX;
  int parts = 1;
  for (int runs = 1; runs <= CeilDiv(a.L, kShortest); ++runs) {
    const int run = CeilDiv(a.L, int64_t{runs} * kTokens) * kTokens;
    const int all = a.B * CeilDiv(a.L, run), each = CeilDiv(all, most);
    const int64_t tokens =
        int64_t{each} * (CeilDiv(run + beyond, kRing<kWidth>) * kRing<kWidth> + kBegin);
    if (tokens >= best) continue;
    best = tokens;
    a.run = run;
    parts = CeilDiv(all, each);
  }
  return parts;
}

}  // namespace

void Run(CudaStream& stream, const ShortConvFwd& f) {
  DispatchConv(f, {}, {}, [&]<class T, int N, int kWidth, bool kDocuments>() {
    Blocks blocks;
    Arguments<T> a = ArgumentsOf<N, T>(f, /*warps=*/2, blocks);
    const auto kernel = Forward<T, N, kWidth, kDocuments>;
    const int64_t shared = Inputs<T, N, kForwardStages>::Bytes(kTokens, blocks.threads);
    const int parts = PartsFor<kWidth>(stream, kernel, a, blocks.threads, shared, /*waves=*/6, 0);
    kernel<<<parts * a.across, blocks.threads, shared, stream.handle()>>>(a);
    if (!f.history_out.defined()) return;
    constexpr int kThreads = 128;
    KeepHistory<T><<<dim3(CeilDiv(a.C, kThreads), a.B), kThreads, 0, stream.handle()>>>(
        a, View3<T>(f.history_out.As<T, 3>()));
  });
}

void Run(CudaStream& stream, const ShortConvBwd& g) {
  DispatchConv(g.fwd, g.dy, g.dx, [&]<class T, int N, int kWidth, bool kDocuments>() {
    Blocks blocks;
    Arguments<T> a = ArgumentsOf<N, T>(g.fwd, /*warps=*/6, blocks);
    a.dy = View3<const T>(g.dy.As<const T, 3>());
    a.dx = View3<T>(g.dx.As<T, 3>());
    a.accumulate_dx = g.dx.accumulate;
    const auto kernel = Backward<T, N, kWidth, kDocuments>;
    const int64_t shared = Inputs<T, N, kBackwardStages>::Bytes(2 * kTokens, blocks.threads);
    const int parts =
        PartsFor<kWidth>(stream, kernel, a, blocks.threads, shared, /*waves=*/1, kWidth - 1);
    a.dw = static_cast<float*>(stream.Scratch(int64_t{parts} * a.W * a.C * 4));
    kernel<<<parts * a.across, blocks.threads, shared, stream.handle()>>>(a);
    CheckLaunch("short_conv");
    LaunchDependent(stream, "short_conv", SumTaps, CeilDiv(int64_t{a.W} * a.C, kWarp),
                    dim3(kWarp, kSumWarps), a.dw, parts, a.W, a.C, g.dw.Data<float>(),
                    g.dw.stride(0), g.dw.stride(1), g.dw.accumulate);
  });
}

}  // namespace weft
