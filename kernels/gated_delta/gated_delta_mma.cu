// The chunked algorithm on tensor cores (mma.sync). Value columns do not interact before the
// gradients, so a warp carries 16 of them through a whole sequence: it holds S^T [16, K] in
// registers, and every product of a chunk has [16, .] from registers on its left and a tile that
// all warps share on its right. gated_delta.md has the equations.

#include "kernels/gated_delta/gated_delta_gates.cuh"

namespace weft::gated_delta {
namespace {

constexpr int kBlocks = kC / 16;  // of 16 tokens
constexpr int kLd = kC + 8;       // between rows of a [C, C] tile in shared memory
constexpr int kSquare = kC * kLd;

// What kernels leave each other in scratch memory, for every chunk.
struct Chunks {
  // [C, C]. Of M^T, as two bf16 numbers each, only the 16 x 16 blocks from the diagonal on; of P
  // only those up to the diagonal.
  BF16 *m, *p;
  Gates* gates;
  // Of the backward:
  Rows<BF16> u, dv;         // [B, T, H, V]
  BF16* dstates = nullptr;  // [V, K]  gradient of S^T after the chunk
  GateSums sums;

  Chunks(Cutter& cut, const Forward<BF16>& f)
      : m(cut.Cut<BF16>(2 * int64_t{kC} * kC * f.tiles())),
        p(cut.Cut<BF16>(int64_t{kC} * kC * f.tiles())),
        gates(cut.Cut<Gates>(f.tiles())) {}
  Chunks(Cutter& cut, const Backward<BF16>& f) : Chunks(cut, static_cast<const Forward<BF16>&>(f)) {
    const auto values = [&] {
      return Rows<BF16>(TensorView(cut.Cut<BF16>(int64_t{f.B} * f.T * f.H * f.V), DType::kBF16,
                                   {f.B, f.T, f.H, f.V}));
    };
    u = values();
    dv = f.add_dv ? values() : f.dv;
    dstates = cut.Cut<BF16>(int64_t{f.tiles()} * f.V * f.K);
    sums = GateSums(cut, f);
  }
};
template <class Op>
Chunks CutChunks(CudaStream& stream, const Op& f) {
  Cutter count;
  Chunks(count, f);
  Cutter cut(stream.Scratch(count.bytes()));
  return Chunks(cut, f);
}

__device__ int Warp() { return threadIdx.x / kWarp; }
__device__ int Lane() { return threadIdx.x % kWarp; }
__device__ Team Block() { return {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)}; }

// Columns of a [16, 16] tile whose columns are tokens, times one number per token.
__device__ void ScaleTokens(Tile& x, const float* by, float factor = 1) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float2 s = TokenPair(by, half);
    x[half][0] *= factor * s.x, x[half][1] *= factor * s.y;
    x[half][2] *= factor * s.x, x[half][3] *= factor * s.y;
  }
}
__device__ Fragment ScaleTokens(const Fragment& x, const float* by, float factor) {
  Fragment scaled;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 s = TokenPair(by, i / 2), pair = UnpackPair(x.at[i]);
    scaled.at[i] = PackPair(factor * s.x * pair.x, factor * s.y * pair.y);
  }
  return scaled;
}

// R = V - erase from_start (K S), given K S; then U = M R. All of it transposed.
__device__ void WrittenRows(Tile (&read)[kBlocks], const ColumnBlock (&v)[kBlocks], float erase,
                            const float* from_start, const BF16* m, Tile (&u)[kBlocks]) {
  Fragment r[kBlocks];
#pragma unroll
  for (int t = 0; t < kBlocks; ++t) {
    const Fragment value = Transpose(v[t]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 s = TokenPair(from_start + 16 * t, i / 2), pair = UnpackPair(value.at[i]);
      float* part = &read[t][i / 2][i % 2 * 2];
      part[0] = pair.x - erase * s.x * part[0];
      part[1] = pair.y - erase * s.y * part[1];
    }
    r[t] = Pack(read[t]);
  }
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int j = 0; j <= i; ++j) Mma(u[i], r[j], Right(m + 16 * j * kLd + 16 * i, kLd, kSquare));
  }
}

// M and P of a chunk, and with kWritten the rows U that it writes, from the saved state. Warp w has
// rows 16 w to 16 w + 15.
constexpr int kPrepareWarps = kBlocks;

struct PrepareTiles {
  Gates gates;
  float diagonal[kBlocks][16 * 20];
  BF16 m[2 * kSquare];  // N, then its inverse in the place of diagonal blocks, in the end M^T

  static int64_t Bytes(int K) { return sizeof(PrepareTiles) + sizeof(BF16) * 2 * kC * (K + 8); }
};

// M^T, given N. With X = (I + N)^-1 in blocks, X_ij = -X_ii sum_{j <= l < i} N_il X_lj. Warp j has
// column j.
__device__ void Invert(PrepareTiles& s) {
  const int warp = Warp(), lane = Lane();
  const auto block = [&](int i, int j) { return s.m + 16 * i * kLd + 16 * j; };
  if (lane < 16) {
    float x[16];
    InverseColumn(s.diagonal[warp], lane, x);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const BF16 high = __float2bfloat16_rn(x[i]);
      block(warp, warp)[i * kLd + lane] = high;
      block(warp, warp)[kSquare + i * kLd + lane] = __float2bfloat16_rn(x[i] - ToFloat(high));
    }
  }
  __syncthreads();
  SplitFragment x[kBlocks];  // X^T, from the diagonal on
  x[0] = LeftTransposed(block(warp, warp), kLd, kSquare);
#pragma unroll
  for (int d = 1; d < kBlocks; ++d) {
    if (warp + d >= kBlocks) continue;
    const int i = warp + d;
    Tile sum = {}, product = {};
#pragma unroll
    for (int l = 0; l < d; ++l) Mma(sum, x[l], RightTransposed(block(i, warp + l), kLd, kSquare));
#pragma unroll
    for (int e = 0; e < 8; ++e) sum[e / 4][e % 4] *= -1;
    Mma(product, Split(sum), RightTransposed(block(i, i), kLd, kSquare));
    x[d] = Split(product);
  }
  __syncthreads();
  const float* beta = s.gates.beta + 16 * warp + lane / 4;
#pragma unroll
  for (int d = 0; d < kBlocks; ++d) {
    if (warp + d >= kBlocks) continue;
    Tile m;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 high = UnpackPair(x[d].high.at[e]), low = UnpackPair(x[d].low.at[e]);
      m[e / 2][e % 2 * 2] = beta[e % 2 * 8] * (high.x + low.x);
      m[e / 2][e % 2 * 2 + 1] = beta[e % 2 * 8] * (high.y + low.y);
    }
    StoreTile(Split(m), block(warp, warp + d), kLd, kSquare);
  }
  __syncthreads();
}

template <bool kWritten>
__global__ void __launch_bounds__(kPrepareWarps* kWarp)
    Prepare(const Forward<BF16> f, const Chunks chunks) {
  extern __shared__ __align__(16) char shared[];
  PrepareTiles& s = *reinterpret_cast<PrepareTiles*>(shared);
  const int ld = f.K + 8;
  BF16 *k = reinterpret_cast<BF16*>(&s + 1), *q = k + kC * ld;
  const Chunk c(f, blockIdx.x);
  const int warp = Warp(), lane = Lane();

  CopyTile(Block(), k, ld, kC, f.K, f.k(c.b, c.begin, c.h), f.k.stride[1], c.count, f.K);
  CopyTile(Block(), q, ld, kC, f.K, f.q(c.b, c.begin, c.h), f.q.stride[1], c.count, f.K);
  CommitCopies();
  if (warp == 0) {
    GatePair gates(f, c);
    gates.Convert(f, f.Head(c.h));
    ScanGates(c, gates, s.gates);
  }
  WaitForCopies();
  __syncthreads();

  Tile kk[kBlocks] = {}, qk[kBlocks] = {};
  for (int column = 0; column < f.K; column += 16) {
    const Fragment key = Left(k + 16 * warp * ld + column, ld),
                   query = Left(q + 16 * warp * ld + column, ld);
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      if (j > warp) break;
      const Fragment other = RightTransposed(k + 16 * j * ld + column, ld);
      Mma(kk[j], key, other);
      Mma(qk[j], query, other);
    }
  }
  // N = erase beta_i decay(i, j) <k_i, k_j> for j < i,  P = scale decay(i, j) <q_i, k_j> for j <= i
  const int64_t tile = int64_t{blockIdx.x} * kC * kC;
  const float beta[2] = {f.erase * s.gates.beta[16 * warp + lane / 4],
                         f.erase * s.gates.beta[16 * warp + lane / 4 + 8]};
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    if (block > warp) break;
    Tile decay;
    Decays(s.gates, warp, block, Lane(), decay);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      kk[block][e / 4][e % 4] *= beta[e % 4 / 2] * decay[e / 4][e % 4];
      qk[block][e / 4][e % 4] *= f.scale * decay[e / 4][e % 4];
    }
    if (block < warp) {
      StoreTile(Split(kk[block]), s.m + 16 * warp * kLd + 16 * block, kLd, kSquare);
    } else {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int i = lane / 4 + e % 4 / 2 * 8, j = e / 4 * 8 + lane % 4 * 2 + e % 2;
        s.diagonal[warp][i * 20 + j] = kk[block][e / 4][e % 4];
      }
    }
    const Fragment p = Pack(qk[block]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const auto [low, high] = Exchange(p.at[r], p.at[2 + r]);
      const int i = 16 * warp + lane / 4 + 8 * r, j = 16 * block + NeighbourColumn();
      *reinterpret_cast<uint2*>(chunks.p + tile + i * kC + j) = {low, high};
    }
  }
  __syncwarp();
  Invert(s);
  for (int row = threadIdx.x / 8; row < kC; row += kPrepareWarps * kWarp / 8) {
    const int column = threadIdx.x % 8 * 8;
    if (column / 16 < row / 16) continue;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      *reinterpret_cast<uint4*>(chunks.m + 2 * tile + part * kC * kC + row * kC + column) =
          *reinterpret_cast<const uint4*>(s.m + part * kSquare + row * kLd + column);
    }
  }
  if (threadIdx.x < sizeof(Gates) / sizeof(uint4)) {
    reinterpret_cast<uint4*>(chunks.gates + blockIdx.x)[threadIdx.x] =
        reinterpret_cast<const uint4*>(&s.gates)[threadIdx.x];
  }

  if constexpr (kWritten) {
    BF16* state = q + 16 * warp * ld;  // the queries are no longer needed
    for (int v = 16 * warp; v < f.V; v += 16 * kPrepareWarps) {
      __syncwarp();
      const BF16* from = f.states(c.b, c.n, c.h) + v * f.K;
      for (int row = lane / 8; row < 16; row += kWarp / 8) {
        for (int column = lane % 8 * 8; column < f.K; column += 64)
          CopyAsync(state + row * ld + column, from + ColumnOfRow(row) * f.K + column, true);
      }
      CommitCopies();
      ColumnBlock value[kBlocks];
#pragma unroll
      for (int t = 0; t < kBlocks; ++t) {
        value[t] =
            LoadColumns(f.v(c.b, c.begin + 16 * t, c.h) + v, f.v.stride[1], c.count - 16 * t);
      }
      WaitForCopies();
      __syncwarp();
      Tile read[kBlocks] = {}, u[kBlocks] = {};
      for (int x = 0; x < f.K; x += 16) {
        const Fragment own = Left(state + x, ld);
#pragma unroll
        for (int t = 0; t < kBlocks; ++t)
          Mma(read[t], own, RightTransposed(k + 16 * t * ld + x, ld));
      }
      WrittenRows(read, value, f.erase, s.gates.from_start, s.m, u);
#pragma unroll
      for (int t = 0; t < kBlocks; ++t) {
        StoreColumns(Pack(u[t]), chunks.u(c.b, c.begin + 16 * t, c.h) + v, chunks.u.stride[1],
                     c.count - 16 * t);
      }
    }
  }
}

// What the warps of a block share of one chunk. kK >= K: the keys' width with padding.
template <int kK>
struct alignas(16) Stage {
  static constexpr int kLdK = kK + 8;
  BF16 k[kC * kLdK], q[kC * kLdK];
  BF16 m[2 * kSquare], p[kSquare];
  float from_start[kC], to_end[kC];

  __device__ void Copy(const Forward<BF16>& f, const Chunks& chunks, const Chunk& c) {
    CopyTile(Block(), k, kLdK, kC, kK, f.k(c.b, c.begin, c.h), f.k.stride[1], c.count, f.K);
    CopyTile(Block(), q, kLdK, kC, kK, f.q(c.b, c.begin, c.h), f.q.stride[1], c.count, f.K);
    const int index = c.Index(f), column = threadIdx.x % 8 * 8;
    const int64_t tile = int64_t{index} * kC * kC;
    for (int row = threadIdx.x / 8; row < kC; row += blockDim.x / 8) {
      const int to = row * kLd + column, from = row * kC + column;
      if (column / 16 >= row / 16) {
        CopyAsync(m + to, chunks.m + 2 * tile + from, true);
        CopyAsync(m + kSquare + to, chunks.m + 2 * tile + kC * kC + from, true);
      }
      if (column / 16 <= row / 16) CopyAsync(p + to, chunks.p + tile + from, true);
    }
    constexpr int kPart = 16 / sizeof(float);
    if (threadIdx.x < 2 * kC / kPart) {
      CopyAsync(from_start + threadIdx.x * kPart,
                chunks.gates[index].from_start + threadIdx.x * kPart, true);
    }
    CommitCopies();
  }
};

// 16 columns of a state or of its gradient, as S^T [16, K]. Rows v stand in the order of
// ColumnOfRow.
template <int kK>
struct StateColumns {
  Tile at[kK / 16] = {};

  // f(element, k, v) for all elements there are; v counts from the first of the 16.
  template <class F>
  __device__ void ForEach(int K, F&& f) {
#pragma unroll
    for (int block = 0; block < kK / 16; ++block) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int k = 16 * block + 8 * (i / 4) + 2 * (Lane() % 4) + i % 2;
        if (k < K) f(at[block][i / 4][i % 4], k, ColumnOfRow(Lane() / 4 + 8 * (i % 4 / 2)));
      }
    }
  }
  __device__ void Scale(float by) {
#pragma unroll
    for (int i = 0; i < kK / 2; ++i) at[i / 8][i / 4 % 2][i % 4] *= by;
  }
  // As rows of S^T in bf16: `to` is that of the first column.
  __device__ void Store(BF16* to, int K) const {
#pragma unroll
    for (int block = 0; block < kK / 16; ++block) {
      const Fragment s = Pack(at[block]);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const auto [low, high] = Exchange(s.at[r], s.at[2 + r]);
        const int v = ColumnOfRow(Lane() / 4 + 8 * r);
        if (16 * block < K) {
          *reinterpret_cast<uint2*>(to + v * K + 16 * block + NeighbourColumn()) = {low, high};
        }
      }
    }
  }
  // out += S^T X^T, where X has the rows of a chunk
  __device__ void Read(const BF16* x, Tile (&out)[kBlocks]) const {
#pragma unroll
    for (int block = 0; block < kK / 16; ++block) {
      const Fragment s = Pack(at[block]);
#pragma unroll
      for (int t = 0; t < kBlocks; ++t) {
        Mma(out[t], s, RightTransposed(x + 16 * t * Stage<kK>::kLdK + 16 * block, Stage<kK>::kLdK));
      }
    }
  }
  // S^T += W^T X, where W^T [16, 16] belongs to the 16 tokens of X
  __device__ void Write(const Fragment& w, const BF16* x) {
#pragma unroll
    for (int block = 0; block < kK / 16; ++block)
      Mma(at[block], w, Right(x + 16 * block, Stage<kK>::kLdK));
  }
};

template <int kK>
constexpr int kMostWarps = kK <= 96 ? 12 : 8;  // as registers allow

// The head and the columns of this warp.
struct Columns {
  int b, h, v;
  __device__ explicit Columns(const Sizes& s)
      : b(blockIdx.x / s.H),
        h(blockIdx.x % s.H),
        v((blockIdx.y * blockDim.x + threadIdx.x) / kWarp * 16) {}
};

template <int kK>
__global__ void __launch_bounds__(kMostWarps<kK>* kWarp, 1)
    Outputs(const Forward<BF16> f, const Chunks chunks) {
  extern __shared__ __align__(16) char shared[];
  Stage<kK>* stages = reinterpret_cast<Stage<kK>*>(shared);
  const Columns own(f);
  StateColumns<kK> state;
  if (f.initial) {
    state.ForEach(f.K, [&](float& s, int k, int v) { s = f.initial(own.b, own.h, k)[own.v + v]; });
  }
  stages[0].Copy(f, chunks, Chunk(f, own.b, 0, own.h));
  for (int n = 0; n < f.chunks; ++n) {
    const Chunk c(f, own.b, n, own.h);
    WaitForCopies();
    __syncthreads();
    if (n + 1 < f.chunks) stages[(n + 1) % 2].Copy(f, chunks, Chunk(f, own.b, n + 1, own.h));
    const Stage<kK>& stage = stages[n % 2];

    ColumnBlock v[kBlocks];
#pragma unroll
    for (int t = 0; t < kBlocks; ++t) {
      v[t] = LoadColumns(f.v(c.b, c.begin + 16 * t, c.h) + own.v, f.v.stride[1], c.count - 16 * t);
    }
    if (f.states) state.Store(f.states(c.b, n, c.h) + own.v * f.K, f.K);
    Tile read[kBlocks] = {}, u[kBlocks] = {}, y[kBlocks] = {};
    state.Read(stage.k, read);
    WrittenRows(read, v, f.erase, stage.from_start, stage.m, u);

    state.Read(stage.q, y);
    Fragment written[kBlocks];
#pragma unroll
    for (int t = 0; t < kBlocks; ++t) {
      ScaleTokens(y[t], stage.from_start + 16 * t, f.scale);
      written[t] = Pack(u[t]);
    }
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int j = 0; j <= i; ++j)
        Mma(y[i], written[j], RightTransposed(stage.p + 16 * i * kLd + 16 * j, kLd));
      StoreColumns(Pack(y[i]), f.y(c.b, c.begin + 16 * i, c.h) + own.v, f.y.stride[1],
                   c.count - 16 * i);
    }

    state.Scale(stage.from_start[kC - 1]);
#pragma unroll
    for (int t = 0; t < kBlocks; ++t) {
      ScaleTokens(u[t], stage.to_end + 16 * t);
      state.Write(Pack(u[t]), stage.k + 16 * t * Stage<kK>::kLdK);
    }
  }
  if (f.final_state) {
    state.ForEach(f.K,
                  [&](float& s, int k, int v) { f.final_state(own.b, own.h, k)[own.v + v] = s; });
  }
}

// From the last chunk to the first: the gradient of the state, and dV.
template <int kK>
__global__ void __launch_bounds__(kMostWarps<kK>* kWarp, 1)
    StateGradients(const Backward<BF16> f, const Chunks chunks) {
  extern __shared__ __align__(16) char shared[];
  Stage<kK>* stages = reinterpret_cast<Stage<kK>*>(shared);
  const Columns own(f);
  StateColumns<kK> dstate;
  if (f.dfinal) {
    dstate.ForEach(f.K, [&](float& s, int k, int v) { s = f.dfinal(own.b, own.h, k)[own.v + v]; });
  }
  stages[(f.chunks - 1) % 2].Copy(f, chunks, Chunk(f, own.b, f.chunks - 1, own.h));
  for (int n = f.chunks - 1; n >= 0; --n) {
    const Chunk c(f, own.b, n, own.h);
    WaitForCopies();
    __syncthreads();
    if (n > 0) stages[(n - 1) % 2].Copy(f, chunks, Chunk(f, own.b, n - 1, own.h));
    const Stage<kK>& stage = stages[n % 2];

    ColumnBlock upstream[kBlocks];
#pragma unroll
    for (int t = 0; t < kBlocks; ++t) {
      upstream[t] =
          LoadColumns(f.dy(c.b, c.begin + 16 * t, c.h) + own.v, f.dy.stride[1], c.count - 16 * t);
    }
    dstate.Store(chunks.dstates + (int64_t{c.Index(f)} * f.V + own.v) * f.K, f.K);
    // dU = to_end (K dS) + P^T dY
    Tile sum[kBlocks] = {};
    dstate.Read(stage.k, sum);
    Fragment dy[kBlocks];
    Fragment du[kBlocks];
#pragma unroll
    for (int t = 0; t < kBlocks; ++t) {
      dy[t] = Transpose(upstream[t]);
      ScaleTokens(sum[t], stage.to_end + 16 * t);
    }
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int i = j; i < kBlocks; ++i)
        Mma(sum[j], dy[i], Right(stage.p + 16 * i * kLd + 16 * j, kLd));
      du[j] = Pack(sum[j]);
    }
    // dV = M^T dU
    Tile dv[kBlocks] = {};
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int i = j; i < kBlocks; ++i)
        Mma(dv[j], du[i], RightTransposed(stage.m + 16 * j * kLd + 16 * i, kLd, kSquare));
      StoreColumns(Pack(dv[j]), chunks.dv(c.b, c.begin + 16 * j, c.h) + own.v, chunks.dv.stride[1],
                   c.count - 16 * j);
    }
    // dS = whole dS + Q^T (scale from_start dY) - K^T (from_start dV)
    dstate.Scale(stage.from_start[kC - 1]);
#pragma unroll
    for (int t = 0; t < kBlocks; ++t) {
      dstate.Write(ScaleTokens(dy[t], stage.from_start + 16 * t, f.scale),
                   stage.q + 16 * t * Stage<kK>::kLdK);
      ScaleTokens(dv[t], stage.from_start + 16 * t, -f.erase);
      dstate.Write(Pack(dv[t]), stage.k + 16 * t * Stage<kK>::kLdK);
    }
  }
  if (f.dinitial) {
    dstate.ForEach(f.K, [&](float& s, int k, int v) {
      PutFloat(f.dinitial(own.b, own.h, k)[own.v + v], s, f.add_dinitial);
    });
  }
}

// Gradients of queries, keys and gates. Blocks go through chunks of heads, loading ahead. Keys
// wider than kK are taken in parts, value columns in slices. Warp w has the rows of tokens 16 (w %
// 4) to 16 (w % 4) + 15, and of blocks of 16 columns those whose number is w / 4 modulo kSides.
constexpr int kSlice = 32, kLdSlice = kSlice + 8;

struct Step {
  int tile, k0 = 0, v0 = 0;
  int part = 0, slice = 0;  // which of the buffers
};

template <int kK>
struct alignas(16) GradientTiles {
  static constexpr int kLdK = kK + 8, kSides = kK / 32, kWarps = 4 * kSides;
  static constexpr int kBlocksPerSm = kK <= 64 ? 2 : 1, kMostSlices = kK <= 64 ? 2 : 4;
  struct Part {
    Gates gates;
    BF16 k[kC * kLdK], q[kC * kLdK];
  };
  struct Slice {
    BF16 u[kC * kLdSlice], dv[kC * kLdSlice], dy[kC * kLdSlice];
    BF16 state[kSlice * kLdK], dstate[kSlice * kLdK];
  };
  Part parts[2];
  BF16 x[kSquare], y[kSquare];
  float dbeta[kC], dgate[kSides][kC], to_state[kSides][kC], across[kWarps];
  Slice slices[2];  // or more, which follow in memory

  static constexpr int64_t Bytes(int slices) {
    return sizeof(GradientTiles) + (slices - 2) * sizeof(Slice);
  }
  __device__ void Copy(const Backward<BF16>& f, const Chunks& chunks, const Chunk& c,
                       const Step& step) {
    const int width = min(kK, f.K - step.k0), columns = min(kSlice, f.V - step.v0);
    if (step.v0 == 0) {
      Part& part = parts[step.part];
      const auto copy = [&](BF16* to, const auto& from) {
        CopyTile(Block(), to, kLdK, kC, kK, from(c.b, c.begin, c.h) + step.k0, from.stride[1],
                 c.count, width);
      };
      copy(part.k, f.k);
      copy(part.q, f.q);
      if (threadIdx.x < sizeof(Gates) / 16) {
        CopyAsync(reinterpret_cast<uint4*>(&part.gates) + threadIdx.x,
                  reinterpret_cast<const uint4*>(chunks.gates + step.tile) + threadIdx.x, true);
      }
    }
    Slice& slice = slices[step.slice];
    const auto copy_values = [&](BF16* to, const auto& from) {
      CopyTile(Block(), to, kLdSlice, kC, kSlice, from(c.b, c.begin, c.h) + step.v0, from.stride[1],
               c.count, columns);
    };
    copy_values(slice.u, chunks.u);
    copy_values(slice.dv, chunks.dv);
    copy_values(slice.dy, f.dy);
    const auto copy_state = [&](BF16* to, const BF16* from) {
      CopyTile(Block(), to, kLdK, kSlice, kK, from + step.v0 * f.K + step.k0, f.K, columns, width);
    };
    copy_state(slice.state, f.states(c.b, c.n, c.h));
    copy_state(slice.dstate, chunks.dstates + int64_t{step.tile} * f.V * f.K);
  }
};

// Row `row` of a tile, times the same row of x, summed over this lane's columns.
__device__ float RowDot(const Tile& tile, int row, const BF16* x) {
  float sum = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(x + 8 * half + 2 * (Lane() % 4));
    const float2 value = UnpackPair(pair);
    sum += tile[half][2 * row] * value.x + tile[half][2 * row + 1] * value.y;
  }
  return sum;
}

// Row `row` of a tile to 16 columns of a gradient.
__device__ void StoreRow(const Tile& tile, int row, BF16* to, bool there, bool add) {
  auto [low, high] = Exchange(float2{tile[0][2 * row], tile[0][2 * row + 1]},
                              float2{tile[1][2 * row], tile[1][2 * row + 1]});
  if (!there) return;
  uint2* at = reinterpret_cast<uint2*>(to + NeighbourColumn());
  if (add) {
    const uint2 old = *at;
    const float2 l = UnpackPair(old.x), h = UnpackPair(old.y);
    low.x += l.x, low.y += l.y, high.x += h.x, high.y += h.y;
  }
  *at = {PackPair(low.x, low.y), PackPair(high.x, high.y)};
}

// log_a_i decays what tokens from i on read of what was written before i: the sum of gradients from
// i to the end of its segment. The last segment reaches into the state after the chunk. Four lanes
// add up one token's.
template <int kK>
__device__ void GateGradients(const Backward<BF16>& f, const Chunk& c, const Gates& gates,
                              GradientTiles<kK>& s, const GateSums& sums) {
  float2 total = {};
  for (int i = threadIdx.x / 4; i < kC; i += blockDim.x / 4) {
    const int segment = gates.segment[i];
    float after = 0, sum = 0;
    for (int w = threadIdx.x % 4; w < s.kWarps; w += 4) after += s.across[w];
    after *= gates.Whole();
#pragma unroll
    for (int j = threadIdx.x % 4; j < kC; j += 4) {
      float dgate = 0;
#pragma unroll
      for (int side = 0; side < s.kSides; ++side) {
        after += s.to_state[side][j];
        dgate += s.dgate[side][j];
      }
      sum += j >= i && gates.segment[j] == segment ? dgate : 0;
    }
    sum = QuadSum(segment == gates.segment[kC - 1] ? sum + after : sum);
    if (threadIdx.x % 4 != 0 || i >= c.count) continue;
    const bool boundary = segment != (i > 0 ? gates.segment[i - 1] : 0);
    const float2 more = f.PutGates(c.b, c.begin + i, c.h, boundary ? 0 : sum,
                                   s.dbeta[i] / gates.beta[i] / gates.beta[i]);
    total.x += more.x, total.y += more.y;
  }
  if (!f.gate_a) return;
  total = {WarpSum(total.x), WarpSum(total.y)};
  __syncthreads();
  if (Lane() == 0) s.dgate[0][Warp()] = total.x, s.to_state[0][Warp()] = total.y;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int w = 1; w < s.kWarps; ++w) total.x += s.dgate[0][w], total.y += s.to_state[0][w];
  sums.Put(c.Index(f), total);
}

template <int kK>
__global__ void __launch_bounds__(GradientTiles<kK>::kWarps* kWarp, GradientTiles<kK>::kBlocksPerSm)
    KeyGradients(const Backward<BF16> f, const Chunks chunks, int slices) {
  using Tiles = GradientTiles<kK>;
  constexpr int kLdK = Tiles::kLdK, kSides = Tiles::kSides;
  constexpr int kParts = 2;                                // blocks of columns per warp
  constexpr int kPairs = (kBlocks + kSides - 1) / kSides;  // and of tokens, where pairs matter
  extern __shared__ __align__(16) char shared[];
  Tiles& s = *reinterpret_cast<Tiles*>(shared);
  const int strip = Warp() % 4, side = Warp() / 4, lane = Lane();
  const int rows[2] = {16 * strip + lane / 4, 16 * strip + lane / 4 + 8};

  const auto advance = [&](Step& step, Chunk& c) {
    step.slice = step.slice + 1 < slices ? step.slice + 1 : 0;
    if ((step.v0 += kSlice) < f.V) return;
    step.v0 = 0;
    step.part ^= 1;
    if ((step.k0 += kK) < f.K) return;
    step.k0 = 0;
    step.tile += gridDim.x;
    c = Chunk(f, step.tile);
  };
  Step step{static_cast<int>(blockIdx.x)}, ahead = step;
  Chunk c(f, step.tile), chunk_ahead = c;
  const auto copy_ahead = [&] {
    if (ahead.tile < f.tiles()) s.Copy(f, chunks, chunk_ahead, ahead);
    CommitCopies();
    advance(ahead, chunk_ahead);
  };
  for (int i = 1; i < slices; ++i) copy_ahead();

  // x = dY U^T,  y = dV U^T,  dq = dY S^T,  write = U dS^T,  read = dV S^T
  Tile x[kPairs], y[kPairs], dq[kParts], write[kParts], read[kParts];
  float dgate[2], to_state[2], across;
  for (; step.tile < f.tiles(); advance(step, c)) {
    slices == 4 ? WaitForCopies<2>() : slices == 3 ? WaitForCopies<1>() : WaitForCopies<0>();
    __syncthreads();
    copy_ahead();
    if (step.v0 == 0) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
#pragma unroll
        for (int i = 0; i < kPairs; ++i) x[i][e / 4][e % 4] = y[i][e / 4][e % 4] = 0;
#pragma unroll
        for (int i = 0; i < kParts; ++i)
          dq[i][e / 4][e % 4] = write[i][e / 4][e % 4] = read[i][e / 4][e % 4] = 0;
      }
      if (step.k0 == 0) dgate[0] = dgate[1] = to_state[0] = to_state[1] = across = 0;
    }
    const auto& slice = s.slices[step.slice];
#pragma unroll
    for (int v = 0; v < kSlice; v += 16) {
      const int own = 16 * strip * kLdSlice + v;
      const Fragment dy = Left(slice.dy + own, kLdSlice), dv = Left(slice.dv + own, kLdSlice),
                     u = Left(slice.u + own, kLdSlice);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int block = kSides * i + side;
        if (block > strip) continue;
        const Fragment other = RightTransposed(slice.u + 16 * block * kLdSlice + v, kLdSlice);
        Mma(x[i], dy, other);
        Mma(y[i], dv, other);
      }
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        const int at = v * kLdK + 16 * (kSides * i + side);
        const Fragment state = Right(slice.state + at, kLdK);
        Mma(dq[i], dy, state);
        Mma(read[i], dv, state);
        Mma(write[i], u, Right(slice.dstate + at, kLdK));
      }
    }
    for (int i = threadIdx.x; i < kSlice * kK / 8; i += Tiles::kWarps * kWarp) {
      const int at = i / (kK / 8) * kLdK + i % (kK / 8) * 8;
      float a[8], b[8];
      Load(slice.state + at, a);
      Load(slice.dstate + at, b);
#pragma unroll
      for (int e = 0; e < 8; ++e) across += a[e] * b[e];
    }
    if (step.v0 + kSlice < f.V) continue;

    // x becomes scale decay dY U^T, y - decay dV U^T. Their diagonals: dbeta = <u, dv> / beta^2.
    const auto& part = s.parts[step.part];
    const Gates& gates = part.gates;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int block = kSides * pair + side;
      if (block > strip) continue;
      Tile decay;
      Decays(gates, strip, block, Lane(), decay);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int i = rows[e % 4 / 2], j = 16 * block + 8 * (e / 4) + 2 * (lane % 4) + e % 2;
        float &dx = x[pair][e / 4][e % 4], &dy = y[pair][e / 4][e % 4];
        if (j == i) s.dbeta[i] = dy;
        dx *= f.scale * decay[e / 4][e % 4];
        dy = j == i ? 0 : -f.erase * decay[e / 4][e % 4] * dy;
      }
      StoreTile(Pack(x[pair]), s.x + 16 * strip * kLd + 16 * block, kLd);
      StoreTile(Pack(y[pair]), s.y + 16 * strip * kLd + 16 * block, kLd);
    }
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int row = rows[e % 4 / 2];
        dq[i][e / 4][e % 4] *= f.scale * gates.from_start[row];
        read[i][e / 4][e % 4] *= -f.erase * gates.from_start[row];
        write[i][e / 4][e % 4] *= gates.to_end[row];
      }
#pragma unroll
      for (int r = 0; r < 2; ++r)
        to_state[r] += RowDot(write[i], r, part.k + rows[r] * kLdK + 16 * (kSides * i + side));
    }
    __syncthreads();
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      if (block <= strip) {
        const int at = 16 * strip * kLd + 16 * block;
        const Fragment dx = Left(s.x + at, kLd), dy = Left(s.y + at, kLd);
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
          const Fragment key = Right(part.k + 16 * block * kLdK + 16 * (kSides * i + side), kLdK);
          Mma(dq[i], dx, key);
          Mma(read[i], dy, key);
        }
      }
      if (block >= strip) {
        const int at = 16 * block * kLd + 16 * strip;
        const Fragment dx = LeftTransposed(s.x + at, kLd), dy = LeftTransposed(s.y + at, kLd);
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
          const int other = 16 * block * kLdK + 16 * (kSides * i + side);
          Mma(write[i], dx, Right(part.q + other, kLdK));
          Mma(write[i], dy, Right(part.k + other, kLdK));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int column = 16 * (kSides * i + side), place = step.k0 + column;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int at = rows[r] * kLdK + column;
        dgate[r] += RowDot(dq[i], r, part.q + at) - RowDot(write[i], r, part.k + at) +
                    RowDot(read[i], r, part.k + at);
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) write[i][e / 4][e % 4] += read[i][e / 4][e % 4];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int t = c.begin + rows[r];
        const bool there = rows[r] < c.count && place < f.K;
        StoreRow(dq[i], r, f.dq(c.b, t, c.h) + place, there, f.add_dq);
        StoreRow(write[i], r, f.dk(c.b, t, c.h) + place, there, f.add_dk);
      }
    }
    if (step.k0 + kK < f.K) continue;

#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float d = QuadSum(dgate[r]), z = QuadSum(to_state[r]);
      if (lane % 4 == 0) s.dgate[side][rows[r]] = d, s.to_state[side][rows[r]] = z;
    }
    const float sum = WarpSum(across);
    if (lane == 0) s.across[Warp()] = sum;
    __syncthreads();
    GateGradients(f, c, gates, s, chunks.sums);
  }
}

// dv += what was computed in scratch memory.
__global__ void AddRows(const Backward<BF16> f, const Rows<BF16> from) {
  const int64_t packs = f.V / 8, i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= packs * f.B * f.T * f.H) return;
  const int64_t row = i / packs, bt = row / f.H;
  const int h = row % f.H, t = bt % f.T, b = bt / f.T, v = i % packs * 8;
  float sum[8], more[8];
  Load(f.dv(b, t, h) + v, sum);
  Load(from(b, t, h) + v, more);
#pragma unroll
  for (int e = 0; e < 8; ++e) sum[e] += more[e];
  Store(sum, f.dv(b, t, h) + v);
}

template <class Kernel, class... Args>
void LaunchBlocks(CudaStream& stream, Kernel kernel, dim3 grid, int threads, int64_t shared,
                  const Args&... args) {
  CudaCheck(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared)),
            "gated_delta");
  kernel<<<grid, threads, shared, stream.handle()>>>(args...);
  CheckLaunch("gated_delta");
}

// Calls f.template operator()<kK>() with the least width for which kernels are compiled.
template <int... kWidths, class F>
void DispatchWidth(int K, F&& f) {
  bool done = false;
  ((!done && K <= kWidths ? (f.template operator()<kWidths>(), done = true) : false), ...);
}

// Warps per block of the kernels that run through a sequence: as many as fit, since they share the
// chunk's tiles, but fewer where heads are too few to occupy the device.
int WarpsPerBlock(const CudaStream& stream, const Sizes& s, int most) {
  const int blocks = s.V / 16;
  for (int warps = std::min(most, blocks); warps > 1; --warps) {
    if (blocks % warps == 0 && 2 * s.heads() * (blocks / warps) >= stream.multiprocessors())
      return warps;
  }
  return 1;
}

template <class F>
void DispatchKeys(int K, F&& f) {
  DispatchWidth<32, 48, 64, 96, 128, 192, 256>(K, f);
}

int64_t SharedLimit() {
  int device = 0, bytes = 0;
  CudaCheck(cudaGetDevice(&device), "cudaGetDevice");
  CudaCheck(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
            "cudaDeviceGetAttribute");
  return bytes;
}

}  // namespace

bool TensorCoresFit(int64_t K) {
  bool fit = false;
  DispatchKeys(static_cast<int>(K), [&]<int kK>() {
    fit = std::max<int64_t>(2 * sizeof(Stage<kK>), GradientTiles<128>::Bytes(2)) <= SharedLimit();
  });
  return fit;
}

void RunTensorCores(CudaStream& stream, const GatedDeltaFwd& op) {
  const Forward<BF16> f(op);
  const Chunks chunks = CutChunks(stream, f);
  LaunchBlocks(stream, Prepare<false>, f.tiles(), kPrepareWarps * kWarp, PrepareTiles::Bytes(f.K),
               f, chunks);
  DispatchKeys(f.K, [&]<int kK>() {
    const int warps = WarpsPerBlock(stream, f, kMostWarps<kK>);
    LaunchBlocks(stream, Outputs<kK>, dim3(f.heads(), f.V / 16 / warps), warps * kWarp,
                 2 * sizeof(Stage<kK>), f, chunks);
  });
}

void RunTensorCores(CudaStream& stream, const GatedDeltaBwd& op) {
  const Backward<BF16> f(op);
  const Chunks chunks = CutChunks(stream, f);
  LaunchBlocks(stream, Prepare<true>, f.tiles(), kPrepareWarps * kWarp, PrepareTiles::Bytes(f.K), f,
               chunks);
  DispatchKeys(f.K, [&]<int kK>() {
    const int warps = WarpsPerBlock(stream, f, kMostWarps<kK>);
    LaunchBlocks(stream, StateGradients<kK>, dim3(f.heads(), f.V / 16 / warps), warps * kWarp,
                 2 * sizeof(Stage<kK>), f, chunks);
  });
  DispatchWidth<32, 64, 96, 128>(std::min(f.K, 128), [&]<int kK>() {
    using Tiles = GradientTiles<kK>;
    // Of the keys only the next part is loaded ahead.
    int slices = std::clamp(CeilDiv(f.V, kSlice) + 1, 2, Tiles::kMostSlices);
    while (slices > 2 && Tiles::Bytes(slices) > SharedLimit()) --slices;
    const int blocks = std::min(f.tiles(), Tiles::kBlocksPerSm * stream.multiprocessors());
    LaunchBlocks(stream, KeyGradients<kK>, blocks, Tiles::kWarps * kWarp, Tiles::Bytes(slices), f,
                 chunks, slices);
  });
  AddUp(stream, op, chunks.sums);
  if (f.add_dv) {
    const int64_t packs = int64_t{f.B} * f.T * f.H * (f.V / 8);
    LaunchBlocks(stream, AddRows, CeilDiv(packs, 256), 256, 0, f, chunks.dv);
  }
}

}  // namespace weft::gated_delta
