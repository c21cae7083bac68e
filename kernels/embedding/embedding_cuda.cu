#include <cmath>
#include <utility>

#include "kernels/base/cuda_rows.cuh"
#include "kernels/embedding/embedding.h"

namespace weft {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp, kBlocksPerProcessor = 3;

// Rows of [B, T, ...] by place, b T + t.
template <class T>
struct Places {
  explicit Places(const TensorView& view)
      : data(view.Data<T>()),
        batch(view.stride(0)),
        token(view.stride(1)),
        length(static_cast<int>(view.dim(1))),
        dense(view.dim(0) == 1 || batch == length * token) {}
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
    return Knows(v) ? v : -1;
  }
  // N tokens, in the vocabulary or not, -1 behind the last. They are dense for N > 1.
  template <int N>
  __device__ void Read(int place, int* v) const {
    if (N > 1 && place + N <= count) {
      const auto pack = *reinterpret_cast<const Pack<int32_t, N>*>(at.data + place);
#pragma unroll
      for (int i = 0; i < N; ++i) v[i] = pack.at[i];
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) v[i] = place + i < count ? *at(place + i) : -1;
    }
  }
  __device__ bool Knows(int v) const { return v >= 0 && v < vocab; }
};

// `lanes` threads copy a row, kPacks packs at a time, of kRows rows at a time.
template <class T, int N, int kRows, int kPacks>
__global__ void __launch_bounds__(kThreads, 6)
    Gather(const Tokens tokens, const T* w, int64_t stride, const Places<T> y, int D, int lanes) {
  const int rows = kThreads / lanes, first = blockIdx.x * rows * kRows + threadIdx.x / lanes;
  int v[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int place = first + r * rows;
    v[r] = place < tokens.count ? tokens(place) : -1;
  }
  for (int begin = threadIdx.x % lanes * N; begin < D; begin += kPacks * lanes * N) {
    Pack<T, N> pack[kRows][kPacks];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        if (const int d = begin + k * lanes * N; v[r] >= 0 && d < D) {
          pack[r][k] = *reinterpret_cast<const Pack<T, N>*>(w + v[r] * stride + d);
        } else {
#pragma unroll
          for (int i = 0; i < N; ++i) pack[r][k].at[i] = FromFloat<T>(nanf(""));
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int place = first + r * rows;
      if (place >= tokens.count) break;
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        if (const int d = begin + k * lanes * N; d < D)
          *reinterpret_cast<Pack<T, N>*>(y(place) + d) = pack[r][k];
      }
    }
  }
}

// The backward has two kernels. Group lists, for each row v of dw, the places where token v stands.
// Sum adds up their rows of dy in the order of the list: one warp per row of dw, or, where token v
// is frequent, blocks for slices of columns and pieces of the list.

constexpr int kGroupThreads = 1024, kGroupWarps = kGroupThreads / kWarp;
constexpr int kFewestClasses = 64, kMostClasses = 1024, kMostMembers = 1024;
constexpr int kFrequent = kWarp;  // a token that stands in more places than this is frequent
constexpr int kPiece = 256;       // places of a frequent token that one block sums

struct Run {
  int begin, count;  // of places
  int first;         // place, if there is one
};
struct Piece {
  int token, begin, count;
  int of, first;  // how many pieces the token has, and the index of its first
};
// The tokens v with the same v mod classes.
struct Class {
  int first_piece, pieces;
};

// In scratch memory.
struct Groups {
  int shift;  // 2^shift classes
  Class* classes;
  Run* run;        // [V]
  int* places;     // [tokens]
  Piece* pieces;   // of the frequent tokens
  int* arrived;    // [pieces, slices]: at a token's first piece, how many pieces are summed
  float* partial;  // [pieces, D]
};

// Sum over the threads before this one; `total` over all.
template <int kThreads>
__device__ int ExclusiveSum(int x, int& total) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ int sums[kWarps];
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
  const int of_warp = lane < kWarps ? sums[lane] : 0;
  total = __reduce_add_sync(~0u, of_warp);
  return __reduce_add_sync(~0u, lane < warp ? of_warp : 0) + inclusive - x;
}

// What the processors that group nothing do meanwhile: of the first rows of dw, one of kZeroedPart
// parts, they zero those whose tokens stand nowhere.
constexpr int kZeroedPart = 4;
struct Zeros {
  float* dw;
  int64_t stride;
  int rows, D;
};
template <int N>
__device__ void SetZeros(const Tokens& tokens, const Zeros& zeros, int* stands, int part,
                         int parts) {
  const int begin = static_cast<int>(int64_t{zeros.rows} * part / parts),
            rows = static_cast<int>(int64_t{zeros.rows} * (part + 1) / parts) - begin;
  for (int q = threadIdx.x; q < rows; q += kGroupThreads) stands[q] = 0;
  __syncthreads();
  constexpr int kAhead = 16;
  for (int first = threadIdx.x * N; first < tokens.count; first += kGroupThreads * kAhead) {
    int v[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; j += N) tokens.Read<N>(first + j * kGroupThreads, v + j);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (v[j] >= begin && v[j] < begin + rows) atomicOr(&stands[v[j] - begin], 1);
    }
  }
  __syncthreads();
  for (int q = threadIdx.x / kWarp; q < rows; q += kGroupWarps) {
    if (stands[q]) continue;
    float* const row = zeros.dw + (begin + q) * zeros.stride;
    for (int d = threadIdx.x % kWarp; d < zeros.D; d += kWarp) row[d] = 0;
  }
}

// A block takes one class: frequent tokens are often neighbours and so go to different blocks. Each
// warp looks at its part of all places and counts those of the class; when it is known where they
// begin in the lists, it writes them. Thus the order in a list is always the same.
template <int N>
__global__ void __launch_bounds__(kGroupThreads, 1)
    Group(const Tokens tokens, int slices, const Groups groups, const Zeros zeros) {
  extern __shared__ int slots[];  // [warps, members]: counts, then the next slot in the list
  const int shift = groups.shift, mask = (1 << shift) - 1, mine = blockIdx.x;
  if (mine > mask) return SetZeros<N>(tokens, zeros, slots, mine - mask - 1, gridDim.x - mask - 1);
  const int members = (tokens.vocab - mine + mask) >> shift;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int* slot = slots + warp * members;
  for (int q = lane; q < members; q += kWarp) slot[q] = 0;
  __syncwarp();

  // In a step every lane looks at kWarp places; few are of its class.
  constexpr int kStep = kWarp * kWarp;
  const int steps = (tokens.count + kGroupWarps * kStep - 1) / (kGroupWarps * kStep);
  const auto place_of = [&](int step, int j) {
    return (warp * steps + step) * kStep + (j / N * kWarp + lane) * N + j % N;
  };
  int lower = 0;  // places whose tokens are of lower classes, in the vocabulary or not
  // Bit j: place_of(step, j) is of this class.
  const auto find = [&](int step) {
    int v[kWarp];
#pragma unroll
    for (int j = 0; j < kWarp; j += N) tokens.Read<N>(place_of(step, j), v + j);
    unsigned found = 0;
#pragma unroll
    for (int j = 0; j < kWarp; ++j) {
      lower += (v[j] & mask) < mine;
      if ((v[j] & mask) == mine && tokens.Knows(v[j])) found |= 1u << j;
    }
    return found;
  };
  const auto first_place = [&](int step, unsigned found) {
    return place_of(step, __ffs(static_cast<int>(found)) - 1);
  };

  unsigned found = 0;
  for (int step = 0; step < steps; ++step) {
    found = find(step);
    for (unsigned left = found; left != 0; left &= left - 1)
      atomicAdd(&slot[*tokens.at(first_place(step, left)) >> shift], 1);
  }
  int begin;
  ExclusiveSum<kGroupThreads>(lower, begin);

  const int q = threadIdx.x, token = (q << shift) + mine;
  int count = 0, total;
  for (int w = 0; w < kGroupWarps && q < members; ++w) count += slots[w * members + q];
  // More than kFrequent places are between two pieces' begins, and so room for both.
  int first_piece = (begin + kFrequent) / (kFrequent + 1);
  begin += ExclusiveSum<kGroupThreads>(count, total);
  const int pieces = count > kFrequent ? (count + kPiece - 1) / kPiece : 0;
  const int before = ExclusiveSum<kGroupThreads>(pieces, total);
  if (threadIdx.x == 0) groups.classes[mine] = {first_piece, total};
  first_piece += before;
  if (q < members) {
    for (int w = 0, next = begin; w < kGroupWarps; ++w) {
      const int counted = slots[w * members + q];
      slots[w * members + q] = next;
      next += counted;
    }
  }
  const int length = pieces ? (count + pieces - 1) / pieces : 0;
  for (int p = 0; p < pieces; ++p) {
    groups.pieces[first_piece + p] = {token, begin + p * length, min(length, count - p * length),
                                      pieces, first_piece};
  }
  for (int s = 0; s < slices && pieces; ++s) groups.arrived[first_piece * slices + s] = 0;
  __syncthreads();

  for (int step = 0; step < steps; ++step) {
    if (steps > 1) found = find(step);
    for (; __any_sync(~0u, found != 0); found &= found - 1) {
      const unsigned asking = __ballot_sync(~0u, found != 0);
      if (found != 0) {
        const int place = first_place(step, found), v = *tokens.at(place);
        int& next = slot[v >> shift];
        const unsigned peers = __match_any_sync(asking, v);
        const int to = next, rank = __popc(peers & ((1u << lane) - 1));
        __syncwarp(asking);
        groups.places[to + rank] = place;
        if (rank == 0) next = to + __popc(peers);
      }
      __syncwarp();
    }
  }
  __syncthreads();
  if (q < members) groups.run[token] = {begin, count, count > 0 ? groups.places[begin] : 0};
}

// dw[v, columns of a slice] of one piece of a frequent token: some lanes per row of dy, several
// rows at a time. Who is the last of a token's pieces adds them up in order.
template <class T, int N>
__device__ void SumPiece(const Groups& groups, const Places<const T>& dy, int index, int slice,
                         int slices, int D, float* dw, int64_t stride, bool accumulate) {
  constexpr int kLanes = 8, kColumns = kLanes * N, kRows = kThreads / kLanes,
                kAhead = kPiece / kRows;
  const Piece piece = groups.pieces[index];
  const int lane = threadIdx.x % kLanes, row = threadIdx.x / kLanes;
  const int d = slice * kColumns + lane * N;
  const T* from[kAhead] = {};
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    if (const int j = row + k * kRows; j < piece.count && d < D)
      from[k] = dy(groups.places[piece.begin + j]) + d;
  }
  float sum[N] = {}, rows[kAhead][N] = {};
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    if (from[k]) Load(from[k], rows[k]);
  }
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] += rows[k][i];
  }
  __shared__ float sums[kWarps][kColumns];
  __shared__ bool last;
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
  const bool owns = threadIdx.x < kColumns && column < D;
  float all = 0;
  for (int w = 0; w < kWarps && owns; ++w) all += sums[w][threadIdx.x];
  if (piece.of > 1) {
    if (owns) groups.partial[int64_t{index} * D + column] = all;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
      last = atomicAdd(&groups.arrived[piece.first * slices + slice], 1) == piece.of - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    all = 0;
    for (int p = 0; p < piece.of && owns; ++p)
      all += __ldcg(&groups.partial[int64_t{piece.first + p} * D + column]);
  }
  if (owns) PutFloat(dw[piece.token * stride + column], all, accumulate);
}

// dw[v] of a token that is not frequent, by one warp.
template <class T, int N>
__device__ void SumRow(const Groups& groups, const Run& run, const Places<const T>& dy, int D,
                       float* dw, bool accumulate) {
  constexpr int kPacks = 12 / sizeof(T);
  using Part = Words<T, N>[kPacks];
  const int lane = threadIdx.x % kWarp;
  const int held = run.count > 1 && lane < run.count ? groups.places[run.begin + lane] : run.first;
  for (int first = 0; first < D; first += kPacks * kWarp * N) {
    const int begin = first + lane * N;
    const auto load = [&](int place, Part& part) {
      const T* const row = dy(place);
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        const int d = begin + k * kWarp * N;
        part[k] = d < D ? LoadWords<N>(row + d) : Words<T, N>{};
      }
    };
    float sum[kPacks][N] = {};
    const auto add = [&](const Part& part) {
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        float x[N];
        Unpack(part[k], x);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[k][i] += x[i];
      }
    };
    Part part;
    if (run.count > 0) {
      load(run.first, part);
      add(part);
    }
    int j = 1;
    for (; j + 1 < run.count; j += 2) {
      Part other;
      load(__shfl_sync(~0u, held, j), part);
      load(__shfl_sync(~0u, held, j + 1), other);
      add(part);
      add(other);
    }
    if (j < run.count) {
      load(__shfl_sync(~0u, held, j), part);
      add(part);
    }
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (const int d = begin + k * kWarp * N; d < D) PutPack(sum[k], dw + d, accumulate);
    }
  }
}

template <class T, int kSlice>
__device__ void SumPieces(const Groups& groups, const Places<const T>& dy, int D, float* dw,
                          int64_t stride, bool accumulate, int block, int blocks) {
  __shared__ int pieces_before[kMostClasses];
  const int classes = 1 << groups.shift, each = (classes + kThreads - 1) / kThreads;
  int pieces = 0, total;
  for (int c = threadIdx.x * each; c < min((threadIdx.x + 1) * each, classes); ++c)
    pieces += groups.classes[c].pieces;
  pieces = ExclusiveSum<kThreads>(pieces, total);
  for (int c = threadIdx.x * each; c < min((threadIdx.x + 1) * each, classes); ++c) {
    pieces_before[c] = pieces;
    pieces += groups.classes[c].pieces;
  }
  __syncthreads();
  const int slices = (D + kSlice - 1) / kSlice;
  for (int item = block; item < total * slices; item += blocks) {
    const int piece = item / slices;
    int c = 0;
    for (int half = classes / 2; half > 0; half /= 2)
      c += pieces_before[c + half] <= piece ? half : 0;
    SumPiece<T, kSlice / 8>(groups, dy, groups.classes[c].first_piece + piece - pieces_before[c],
                            item % slices, slices, D, dw, stride, accumulate);
  }
}

// The first blocks have a row per warp, without the first `zeroed` if they are zero; the others
// share the frequent tokens' pieces.
template <class T, int N, int kSlice>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    Sum(const Groups groups, const Places<const T> dy, int V, int D, float* dw, int64_t stride,
        bool accumulate, int zeroed) {
  const int for_rows = (V + kWarps - 1) / kWarps;
  if (blockIdx.x >= for_rows) {
    return SumPieces<T, kSlice>(groups, dy, D, dw, stride, accumulate, blockIdx.x - for_rows,
                                gridDim.x - for_rows);
  }
  const int v = blockIdx.x * kWarps + threadIdx.x / kWarp;
  if (v >= V) return;
  const Run run = groups.run[v];
  if (run.count > kFrequent || (run.count == 0 && (accumulate || v < zeroed))) return;
  SumRow<T, N>(groups, run, dy, D, dw + v * stride, accumulate);
}

Tokens TokensOf(const EmbeddingFwd& f) {
  Check(f.tokens.size() < 1 << 30 && f.w.dim(0) < 1 << 30 && f.w.dim(1) < 1 << 30,
        "embedding: ", f.tokens.ToString(), " tokens and w ", f.w.ToString(),
        " are too many for a GPU");
  return {Places<const int32_t>(f.tokens), static_cast<int>(f.tokens.size()),
          static_cast<int>(f.w.dim(0))};
}

template <class T>
void Forward(CudaStream& stream, const EmbeddingFwd& f) {
  const Tokens tokens = TokensOf(f);
  const int D = static_cast<int>(f.w.dim(1));
  if (f.y.size() == 0) return;
  const auto gather = [&]<int N>() {
    int lanes = 4;
    while (lanes < kWarp && lanes * N < D) lanes *= 2;
    constexpr int kInFlight = 4;
    const bool wide = D > lanes * N;
    const auto kernel = wide ? Gather<T, N, 1, kInFlight> : Gather<T, N, kInFlight, 1>;
    const int rows = kThreads / lanes * (wide ? 1 : kInFlight);
    kernel<<<CeilDiv(tokens.count, rows), kThreads, 0, stream.handle()>>>(
        tokens, f.w.Data<const T>(), f.w.stride(0), Places<T>(f.y), D, lanes);
    CheckLaunch("embedding");
  };
  const bool packable = Packable<T>(f.w, kPack<T>) && Packable<T>(f.y, kPack<T>);
  packable ? gather.template operator()<kPack<T>>() : gather.template operator()<1>();
}

// A warp of Sum reads N columns per lane at once, and writes as many; a block with a piece reads
// slices of 8 packs.
template <class T, int N, int kSlice>
void Backward(CudaStream& stream, const EmbeddingBwd& b) {
  const Tokens tokens = TokensOf(b.fwd);
  const int V = tokens.vocab, D = static_cast<int>(b.dw.dim(1)), n = tokens.count;
  if (V == 0 || D == 0) return;
  int shift = 0;
  while (1 << shift < V && (1 << shift < kFewestClasses || V > kMostMembers << shift)) ++shift;
  const int classes = 1 << shift, slices = CeilDiv(D, kSlice);
  Check(classes <= kMostClasses, "embedding: a vocabulary of ", V, " is too large for a GPU, ",
        kMostClasses * kMostMembers, " is the most");

  const int64_t most_pieces = n / (kFrequent + 1) + 1;
  constexpr int64_t kPieceInts = sizeof(Piece) / sizeof(int), kRunInts = sizeof(Run) / sizeof(int);
  auto* scratch = static_cast<int*>(stream.Scratch(
      4 * (2LL * classes + kRunInts * V + n + most_pieces * (kPieceInts + slices + D))));
  const auto take = [&](int64_t ints) { return std::exchange(scratch, scratch + ints); };
  Groups groups{.shift = shift};
  groups.classes = reinterpret_cast<Class*>(take(2LL * classes));
  groups.run = reinterpret_cast<Run*>(take(kRunInts * V));
  groups.places = take(n);
  groups.pieces = reinterpret_cast<Piece*>(take(most_pieces * kPieceInts));
  groups.arrived = take(most_pieces * slices);
  groups.partial = reinterpret_cast<float*>(take(most_pieces * D));

  const bool packed = tokens.at.dense && reinterpret_cast<uintptr_t>(tokens.at.data) % 16 == 0;
  const auto group = packed ? Group<4> : Group<1>;
  const int slots = kGroupWarps * CeilDiv(V, classes) * 4;
  CudaCheck(cudaFuncSetAttribute(group, cudaFuncAttributeMaxDynamicSharedMemorySize, slots),
            "embedding");
  const int idle = std::max(0, stream.multiprocessors() - classes),
            zeroed = b.dw.accumulate || idle == 0 ? 0 : V / kZeroedPart;
  const Zeros zeros{b.dw.Data<float>(), b.dw.stride(0), zeroed, D};
  group<<<classes + (zeroed > 0 ? idle : 0), kGroupThreads, slots, stream.handle()>>>(
      tokens, slices, groups, zeros);
  CheckLaunch("embedding");

  const int resident = kBlocksPerProcessor * stream.multiprocessors(),
            for_pieces = static_cast<int>(std::min<int64_t>(most_pieces * slices, resident));
  Sum<T, N, kSlice><<<CeilDiv(V, kWarps) + for_pieces, kThreads, 0, stream.handle()>>>(
      groups, Places<const T>(b.dy), V, D, b.dw.Data<float>(), b.dw.stride(0), b.dw.accumulate,
      zeroed);
  CheckLaunch("embedding");
}

}  // namespace

void Run(CudaStream& stream, const EmbeddingFwd& f) {
  DispatchCuda(f.w.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

void Run(CudaStream& stream, const EmbeddingBwd& b) {
  DispatchCuda(b.fwd.w.dtype(), [&]<class T>() {
    const bool packable = Packable<T>(b.dy, kPack<T>) && Packable<float>(b.dw, 4);
    // With more columns than a lane can write at once, a warp's writes would have gaps.
    packable ? Backward<T, kPack<float>, 8 * kPack<T>>(stream, b) : Backward<T, 1, 8>(stream, b);
  });
}

}  // namespace weft
