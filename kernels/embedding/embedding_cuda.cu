#include <climits>
#include <cmath>

#include "kernels/base/cuda.cuh"
#include "kernels/embedding/embedding.h"

namespace weft {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kRowsPerWarp = 4;

// Rows of [B, T, ...] by place, b T + t.
template <class T>
struct Places {
  explicit Places(const TensorView& view)
      : data(view.Data<T>()),
        batch(view.stride(0)),
        token(view.stride(1)),
        length(static_cast<int>(view.dim(1))),
        dense(batch == length * token) {}
  __device__ T* operator()(int place) const {
    return data + (dense ? place * token : place / length * batch + place % length * token);
  }

  T* data;
  int64_t batch, token;
  int length;
  bool dense;
};

struct Tokens {
  Places<const int32_t> at;
  int count, vocab;

  // -1 where the token is not in the vocabulary.
  __device__ int operator()(int place) const {
    const int v = *at(place);
    return v >= 0 && v < vocab ? v : -1;
  }
};

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    Gather(const Tokens tokens, const T* w, int64_t stride, const Places<T> y, int D) {
  const int begin = (blockIdx.x * kWarps + threadIdx.x / kWarp) * kRowsPerWarp;
  const T* from[kRowsPerWarp] = {};
  T* to[kRowsPerWarp] = {};
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int place = begin + r;
    if (place >= tokens.count) break;
    const int v = tokens(place);
    if (v >= 0) from[r] = w + v * stride;
    to[r] = y(place);
  }
#pragma unroll 1
  for (int d = threadIdx.x % kWarp * N; d < D; d += kWarp * N) {
    Pack<T, N> pack[kRowsPerWarp];
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      if (from[r]) {
        pack[r] = *reinterpret_cast<const Pack<T, N>*>(from[r] + d);
      } else {
#pragma unroll
        for (int i = 0; i < N; ++i) pack[r].at[i] = FromFloat<T>(nanf(""));
      }
    }
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      if (to[r]) *reinterpret_cast<Pack<T, N>*>(to[r] + d) = pack[r];
    }
  }
}

// The backward has two kernels. Group lists, for each row v of dw, the places where token v stands.
// Sum adds up their rows of dy, always in the order of places: one warp per row of dw, or, where
// token v is frequent, one block per slice of columns.

constexpr int kGroupThreads = 1024, kMaxClasses = 128;
constexpr int kFrequent = kWarp;  // a token that stands in more places than this is frequent
constexpr int kMaxVocab = 1 << 19;

// In scratch memory.
struct Groups {
  int* frequent_count;
  int* frequent;  // the frequent tokens, in no order
  int2* run;      // [V]: where the places of v begin in the lists, and how many they are
  int* places;    // in no order
  int* in_order;  // of frequent tokens: in order
};

// Sum over the threads before this one; `total` over all.
__device__ int ExclusiveSum(int x, int& total) {
  __shared__ int sums[kGroupThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int inclusive = x;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int below = __shfl_up_sync(~0u, inclusive, offset);
    if (lane >= offset) inclusive += below;
  }
  __syncthreads();
  if (lane == kWarp - 1) sums[warp] = inclusive;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kGroupThreads / kWarp; ++w) {
    if (w == warp) before = total;
    total += sums[w];
  }
  return before + inclusive - x;
}

// Takes one slot of counter[q] for each lane that asks, with one addition for those of equal q.
__device__ int TakeSlot(bool ask, int* counter, int q) {
  const unsigned asking = __ballot_sync(~0u, ask);
  if (!ask) return 0;
  const unsigned peers = __match_any_sync(asking, q);
  const int leader = __ffs(peers) - 1, lane = threadIdx.x % kWarp;
  int slot = 0;
  if (lane == leader) slot = atomicAdd(counter + q, __popc(peers));
  return __shfl_sync(peers, slot, leader) + __popc(peers & ((1u << lane) - 1));
}

// A block takes the tokens v = blockIdx.x mod `classes`, a power of two, so that frequent tokens,
// which are often neighbours, go to different blocks. It reads all tokens twice, from caches.
__global__ void __launch_bounds__(kGroupThreads, 1)
    Group(const Tokens tokens, int shift, const Groups groups) {
  constexpr int kAhead = 8, kWordBits = 32;
  // [members]: counts of token v = q classes + mine, then its next slot; and which v are frequent.
  extern __shared__ int slot[];
  __shared__ unsigned bitmap[kGroupThreads];
  __shared__ int frequent_members;
  const int classes = 1 << shift, mine = blockIdx.x;
  const int members = (tokens.vocab - mine + classes - 1) >> shift;
  int* frequent = slot + members;
  for (int q = threadIdx.x; q < members; q += kGroupThreads) slot[q] = 0;
  if (threadIdx.x == 0) frequent_members = 0;
  __syncthreads();

  const auto for_tokens = [&](auto&& body) {
    for (int first = 0; first < tokens.count; first += kAhead * kGroupThreads) {
      int v[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int i = first + k * kGroupThreads + threadIdx.x;
        v[k] = i < tokens.count ? tokens(i) : -1;
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) body(first + k * kGroupThreads + threadIdx.x, v[k]);
    }
  };
  int lower = 0, begin = 0;  // places of lower classes
  for_tokens([&](int, int v) {
    const int its = v & (classes - 1);
    lower += v >= 0 && its < mine;
    TakeSlot(v >= 0 && its == mine, slot, v >> shift);
  });
  ExclusiveSum(lower, begin);

  for (int first = 0; first < members; first += kGroupThreads) {
    const int q = first + threadIdx.x, count = q < members ? slot[q] : 0;
    int total;
    const int start = begin + ExclusiveSum(count, total);
    if (q < members) {
      const int v = (q << shift) + mine;
      groups.run[v] = {start, count};
      slot[q] = start;
      if (count > kFrequent) {
        groups.frequent[atomicAdd(groups.frequent_count, 1)] = v;
        frequent[atomicAdd(&frequent_members, 1)] = v;
      }
    }
    begin += total;
  }
  __syncthreads();
  for_tokens([&](int i, int v) {
    const bool is_mine = v >= 0 && (v & (classes - 1)) == mine;
    const int to = TakeSlot(is_mine, slot, v >> shift);
    if (is_mine) groups.places[to] = i;
  });
  __syncthreads();

  // Places of a frequent token in order: as set bits of a map of all places, piece by piece.
  for (int f = 0; f < frequent_members; ++f) {
    const int2 run = groups.run[frequent[f]];
    int done = run.x;
    for (int first = 0; first < tokens.count; first += kGroupThreads * kWordBits) {
      bitmap[threadIdx.x] = 0;
      __syncthreads();
      for (int j = threadIdx.x; j < run.y; j += kGroupThreads) {
        const unsigned bit = groups.places[run.x + j] - first;
        if (bit < kGroupThreads * kWordBits)
          atomicOr(&bitmap[bit / kWordBits], 1u << bit % kWordBits);
      }
      __syncthreads();
      unsigned word = bitmap[threadIdx.x];
      int total, to = done + ExclusiveSum(__popc(word), total);
      for (; word; word &= word - 1)
        groups.in_order[to++] = first + threadIdx.x * kWordBits + __ffs(word) - 1;
      done += total;
    }
  }
}

// dw[v, columns of a slice] of a frequent token: some lanes per row of dy, several rows at a time.
template <class T, int N>
__device__ void SumFrequent(const Groups& groups, const Places<const T>& dy, int v, int slice,
                            int D, float* dw, bool accumulate) {
  constexpr int kLanes = 8, kColumns = kLanes * N, kRows = kThreads / kLanes, kAhead = 4;
  const int2 run = groups.run[v];
  const int lane = threadIdx.x % kLanes, d = slice * kColumns + lane * N;
  float sum[N] = {};
  for (int j = threadIdx.x / kLanes; j < run.y && d < D; j += kAhead * kRows) {
    float row[kAhead][N] = {};
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (j + k * kRows >= run.y) break;
      Load(dy(groups.in_order[run.x + j + k * kRows]) + d, row[k]);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += row[k][i];
    }
  }
  __shared__ float sums[kWarps][kColumns];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int offset = kLanes; offset < kWarp; offset *= 2)
      sum[i] += __shfl_xor_sync(~0u, sum[i], offset);
    if (threadIdx.x % kWarp < kLanes) sums[threadIdx.x / kWarp][lane * N + i] = sum[i];
  }
  __syncthreads();
  const int column = slice * kColumns + threadIdx.x;
  if (threadIdx.x >= kColumns || column >= D) return;
  float all = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) all += sums[w][threadIdx.x];
  PutFloat(dw[column], all, accumulate);
}

// dw[v] of a token that is not frequent, by one warp whose lanes hold one place each.
template <class T, int N>
__device__ void SumRare(const Groups& groups, const Places<const T>& dy, int v, int D, float* dw,
                        bool accumulate) {
  constexpr int kPacks = 3, kAhead = 2;
  const int2 run = groups.run[v];
  if (run.y > kFrequent || (run.y == 0 && accumulate)) return;
  const int lane = threadIdx.x % kWarp;
  const int held = lane < run.y ? groups.places[run.x + lane] : INT_MAX;
  for (int first = lane * N; first - lane * N < D; first += kPacks * kWarp * N) {
    float sum[kPacks][N] = {};
    int left = held;
    for (int j = 0; j < run.y; j += kAhead) {
      float row[kAhead][kPacks][N] = {};
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int place = __reduce_min_sync(~0u, left);
        if (place == INT_MAX) break;
        if (left == place) left = INT_MAX;
        const T* from = dy(place);
#pragma unroll
        for (int k = 0; k < kPacks; ++k) {
          if (const int d = first + k * kWarp * N; d < D) Load(from + d, row[a][k]);
        }
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
#pragma unroll
        for (int k = 0; k < kPacks; ++k) {
#pragma unroll
          for (int i = 0; i < N; ++i) sum[k][i] += row[a][k][i];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int d = first + k * kWarp * N;
      if (d >= D) break;
      if (accumulate) {
        float before[N];
        Load(dw + d, before);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[k][i] += before[i];
      }
      Store(sum[k], dw + d);
    }
  }
}

template <class T, int N, int kSlice>
__global__ void __launch_bounds__(kThreads)
    Sum(const Groups groups, const Places<const T> dy, int V, int D, float* dw, int64_t stride,
        bool accumulate, int frequent_blocks) {
  const int block = blockIdx.x;
  if (block < frequent_blocks) {
    const int slices = (D + kSlice - 1) / kSlice, items = *groups.frequent_count * slices;
    for (int item = block; item < items; item += frequent_blocks) {
      const int v = groups.frequent[item / slices];
      SumFrequent<T, kSlice / 8>(groups, dy, v, item % slices, D, dw + v * stride, accumulate);
    }
  } else {
    const int v = (block - frequent_blocks) * kWarps + threadIdx.x / kWarp;
    if (v < V) SumRare<T, N>(groups, dy, v, D, dw + v * stride, accumulate);
  }
}

Tokens TokensOf(const EmbeddingFwd& f) {
  Check(f.tokens.size() <= INT_MAX - (1 << 16) && f.w.dim(0) <= kMaxVocab &&
            f.w.dim(1) <= INT_MAX / 2,
        "embedding: ", f.tokens.ToString(), " tokens and w ", f.w.ToString(),
        " are more than the CUDA backend takes");
  return {Places<const int32_t>(f.tokens), static_cast<int>(f.tokens.size()),
          static_cast<int>(f.w.dim(0))};
}

template <class T>
void Forward(CudaStream& stream, const EmbeddingFwd& f) {
  const Tokens tokens = TokensOf(f);
  if (tokens.count == 0) return;
  constexpr int kN = kPack<T>;
  const auto gather = Packable<T>(f.w, kN) && Packable<T>(f.y, kN) ? Gather<T, kN> : Gather<T, 1>;
  gather<<<CeilDiv(tokens.count, kWarps * kRowsPerWarp), kThreads, 0, stream.handle()>>>(
      tokens, f.w.Data<const T>(), f.w.stride(0), Places<T>(f.y), static_cast<int>(f.w.dim(1)));
  CheckLaunch("embedding");
}

template <class T>
void Backward(CudaStream& stream, const EmbeddingBwd& b) {
  const Tokens tokens = TokensOf(b.fwd);
  const int V = tokens.vocab, D = static_cast<int>(b.dw.dim(1)), n = tokens.count;
  if (V == 0 || D == 0) return;
  const int most_frequent = std::min(V, n / (kFrequent + 1));
  auto* scratch = static_cast<int*>(stream.Scratch((2 + 2 * V + most_frequent + 2 * n) * 4LL));
  Groups groups{.frequent_count = scratch};
  groups.run = reinterpret_cast<int2*>(scratch + 2);
  groups.frequent = scratch + 2 + 2 * V;
  groups.places = groups.frequent + most_frequent;
  groups.in_order = groups.places + n;
  stream.Zero(groups.frequent_count, sizeof(int));

  int shift = 0;
  while (1 << shift < std::min(V, kMaxClasses)) ++shift;
  const int members = CeilDiv(V, 1 << shift);
  Group<<<1 << shift, kGroupThreads, 2 * members * sizeof(int), stream.handle()>>>(tokens, shift,
                                                                                   groups);
  CheckLaunch("embedding");

  const auto sum = [&]<int N, int kSlice>() {
    const int frequent_blocks =
        std::min(most_frequent * CeilDiv(D, kSlice), 8 * stream.multiprocessors());
    Sum<T, N, kSlice><<<frequent_blocks + CeilDiv(V, kWarps), kThreads, 0, stream.handle()>>>(
        groups, Places<const T>(b.dy), V, D, b.dw.Data<float>(), b.dw.stride(0), b.dw.accumulate,
        frequent_blocks);
    CheckLaunch("embedding");
  };
  // A lane of the rare tokens reads 4 columns and writes 16 bytes; of the frequent, it reads 16.
  const bool packable = Packable<T>(b.dy, kPack<T>) && Packable<float>(b.dw, 4);
  packable ? sum.template operator()<4, 8 * kPack<T>>() : sum.template operator()<1, 8>();
}

}  // namespace

void Run(CudaStream& stream, const EmbeddingFwd& f) {
  DispatchCuda(f.w.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

void Run(CudaStream& stream, const EmbeddingBwd& b) {
  DispatchCuda(b.fwd.w.dtype(), [&]<class T>() { Backward<T>(stream, b); });
}

}  // namespace weft
