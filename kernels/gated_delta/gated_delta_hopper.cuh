#pragma once
// What the kernels for sm_90a share: how a chunk's tiles lie in shared memory, and how a warpgroup
// makes of its keys, queries and gates the tiles that all products of the chunk need. With
// gated_delta.md's N and P, and tokens i, j of the chunk:
//
//   X = (I + N)^-1,  so that M = X diag(beta);  U = X (beta (V - from_start K S))

#include "kernels/base/hopper.cuh"
#include "kernels/gated_delta/gated_delta_gates.cuh"

namespace weft::gated_delta {

using namespace hopper;

constexpr int kBlocks = kC / 16;  // of 16 tokens
constexpr int kSquare = kC * kC;

// Keys and queries of a chunk, [kC, kKeys], in panels of kKeyPanel columns.
template <int kKeys>
constexpr int kKeyPanel = kKeys == 96 ? 32 : kWidePanel;
template <int kKeys>
constexpr int kKeyWidth = (kKeys + kKeyPanel<kKeys> - 1) / kKeyPanel<kKeys>* kKeyPanel<kKeys>;

template <int kKeys>
__device__ inline void LoadKeys(BF16* to, const CUtensorMap& map, const Chunk& c,
                                Barrier& barrier) {
  LoadTile<kKeyWidth<kKeys>, kKeyPanel<kKeys>>(to, map, kC, c.b, c.h, c.begin, barrier);
}
// As an operand whose depth is the width of the keys, from column d on; or the tokens, from t on.
template <int kKeys>
__device__ inline uint64_t AlongKeys(const BF16* tile, int d) {
  constexpr int kPanel = kKeyPanel<kKeys>;
  return Descriptor<kPanel>(tile + d / kPanel * kPanel * kC + d % kPanel, 0);
}
template <int kKeys>
__device__ inline uint64_t AlongTokens(const BF16* tile, int t) {
  constexpr int kPanel = kKeyPanel<kKeys>;
  return Descriptor<kPanel>(tile + t * kPanel, kC * kPanel * static_cast<int>(sizeof(BF16)));
}
// A [kC, kC] tile from (row, column) on.
__device__ inline uint64_t Square(const BF16* tile, int row, int column) {
  return Descriptor(tile + row * kWidePanel + column, 0);
}

// What products of a chunk need beside its tensors, [kC, kC] tiles of one panel. X is the sum of
// two bf16 numbers. Prepare writes the 16 x 16 blocks up to the diagonal; the others are to be
// zero.
struct alignas(1024) Prepared {
  BF16 x_high[kSquare], x_low[kSquare], p[kSquare];
  Gates gates;
};

// Where a lane loads and stores its part of a 16 x 16 block of such a tile.
__device__ inline int BlockAt(int lane, int row, int column, bool transposed = false) {
  const int at = transposed ? InPanel(lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8)
                            : InPanel(lane % 16, lane / 16 * 8);
  return 16 * row * kWidePanel + (at ^ 16 * column);
}
__device__ inline SplitFragment LeftBlock(const Prepared& x, int lane, int row, int column) {
  const int at = BlockAt(lane, row, column);
  return {LoadMatrix(x.x_high + at), LoadMatrix(x.x_low + at)};
}
__device__ inline SplitFragment RightBlock(const Prepared& x, int lane, int row, int column) {
  const int at = BlockAt(lane, row, column);
  return {LoadMatrixTransposed(x.x_high + at), LoadMatrixTransposed(x.x_low + at)};
}
__device__ inline void StoreMatrix(const Fragment& x, BF16* p) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(SharedAddress(p)),
      "r"(x.at[0]), "r"(x.at[1]), "r"(x.at[2]), "r"(x.at[3])
      : "memory");
}
__device__ inline void StoreMatrixTransposed(const Fragment& x, BF16* p) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   SharedAddress(p)),
               "r"(x.at[0]), "r"(x.at[1]), "r"(x.at[2]), "r"(x.at[3])
               : "memory");
}
__device__ inline void StoreBlock(const SplitFragment& x, Prepared& to, int lane, int row,
                                  int column) {
  const int at = BlockAt(lane, row, column);
  StoreMatrix(x.high, to.x_high + at);
  StoreMatrix(x.low, to.x_low + at);
}
// product = a b. Sums that do not wait for each other: the tensor cores are busy with other things.
__device__ inline void Multiply(const SplitFragment& a, const SplitFragment& b, Tile& product) {
  Tile high = {}, low[2] = {};
  Mma(high, a.high, b.high);
  Mma(low[0], a.high, b.low);
  Mma(low[1], a.low, b.high);
#pragma unroll
  for (int e = 0; e < 8; ++e)
    product[e / 4][e % 4] = high[e / 4][e % 4] + (low[0][e / 4][e % 4] + low[1][e / 4][e % 4]);
}
// Two numbers as pairs of bf16 numbers.
__device__ inline void SplitPair(float x, float y, uint32_t& high, uint32_t& low) {
  high = PackPair(x, y);
  const float2 rounded = UnpackPair(high);
  low = PackPair(x - rounded.x, y - rounded.y);
}
// What was a tile and is to be a right operand.
__device__ inline SplitFragment AsRight(const Tile& x) {
  SplitFragment right = Split(x);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    right.high.at[i] = Transpose(right.high.at[i]);
    right.low.at[i] = Transpose(right.low.at[i]);
  }
  return right;
}

// Row i of (I + N)^-1 for a strictly lower triangular N [16, 16], given N^T with rows of 20 floats.
__device__ inline void InverseRow(const float* n, int i, float (&x)[16]) {
#pragma unroll
  for (int j = 15; j >= 0; --j) {
    float sum[4] = {};
#pragma unroll
    for (int l = (j + 1) / 4 * 4; l < 16; l += 4) {
      const float4 row = *reinterpret_cast<const float4*>(n + j * 20 + l);
      if (l > j) sum[0] += row.x * x[l];
      if (l + 1 > j) sum[1] += row.y * x[l + 1];
      if (l + 2 > j) sum[2] += row.z * x[l + 2];
      if (l + 3 > j) sum[3] += row.w * x[l + 3];
    }
    x[j] = (i == j ? 1.f : 0.f) - ((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
}

// Memory for the diagonal blocks of N^T.
using Diagonal = float[kBlocks][16 * 20];

// Of a block that goes through a sequence: warpgroup 0 loads and prepares chunk after chunk, while
// each of the others, with 64 columns of values, works on the one before. What these make of their
// values takes the values' place.
template <int kKeys, int kGroups, int kStages, int kTiles>
struct SequenceMemory {
  struct alignas(1024) Stage {
    BF16 k[kC * kKeyWidth<kKeys>], q[kC * kKeyWidth<kKeys>];
    BF16 values[kGroups][kSquare];
    Gates gates;
  };
  Stage stages[kStages];
  Prepared tiles[kTiles];
  Diagonal diagonal;
  HeadGates head;  // of the forward
  Barrier full[kStages], empty[kStages], ready[kTiles], taken[kTiles];
};

// What has decayed to exp of this, or belongs to a document before, is less than the rounding of
// any sum. No state grows on its way.
constexpr float kForgotten = -45;
// The logarithm of a chunk's decay. By one warp.
__device__ inline float LogDecay(const Forward<BF16>& f, const Chunk& c) {
  GatePair pair(f, c);
  pair.Convert(f, f.Head(c.h));
  const int first = FirstToken(c);
  float sum = 0;
#pragma unroll
  for (int e = 0; e < 2; ++e)
    sum += pair.StartsDocument(e, first + e) ? kForgotten : pair.log_a[e];
  return WarpSum(sum);
}

// X and, with kOutputs, P of a chunk, by one warpgroup, which meets at `barrier`. meanwhile(warp)
// is called by its warps 1 and 3 alone, in time that they would wait; what it writes to shared
// memory is there for all of them afterwards. kLean: P after N, where registers do not hold both.
template <int kKeys, bool kOutputs = true, bool kLean = false, class F>
__device__ void Prepare(float scale, float erase, const BF16* k, const BF16* q, const Gates& gates,
                        Prepared& to, Diagonal& diagonal, int barrier, F&& meanwhile) {
  const int thread = FreshThread();
  const int warp = thread % kGroup / kWarp, lane = thread % kWarp;
  const auto multiply = [&](float(&dots)[kC / 8][4], const BF16* right) {
    Begin(dots);
#pragma unroll
    for (int d = 0; d < kKeys; d += 16) {
      Products<kC>::Step<false, false>(dots, AlongKeys<kKeys>(k, d), AlongKeys<kKeys>(right, d),
                                       d > 0);
    }
    Commit();
  };
  float n[kC / 8][4], p[kC / 8][4];
  multiply(n, k);
  if constexpr (kOutputs && !kLean) multiply(p, q);
  // N(i, j) = beta_i decay(i, j) <k_i, k_j> for j < i, and P^T(j, i) = scale decay(i, j) <k_j, q_i>
  // for j <= i: a warp has rows of both, of which the first grow longer and the second shorter. All
  // go through all columns, so that without branches there is always something to do.
  const int row = 16 * warp + lane / 4, column = lane % 4 * 2;
  float log2_sum[2], beta[2];
  int segment[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    log2_sum[r] = gates.log2_sum[row + 8 * r];
    segment[r] = gates.segment[row + 8 * r];
    beta[r] = erase * gates.beta[row + 8 * r];
  }
  const auto for_decays = [&](auto&& visit) {
#pragma unroll
    for (int j = 0; j < kC / 8; ++j) {
      const float2 log2_sums = *reinterpret_cast<const float2*>(gates.log2_sum + 8 * j + column);
      const int2 segments = *reinterpret_cast<const int2*>(gates.segment + 8 * j + column);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = e / 2;
        const float between = fabsf(log2_sum[r] - (e % 2 ? log2_sums.y : log2_sums.x));
        const bool same = (e % 2 ? segments.y : segments.x) == segment[r];
        visit(j, e, FastExp2(same ? -between : -INFINITY));
      }
    }
  };
  if constexpr (kOutputs && !kLean) {
    Finish<0>(n, p);
  } else {
    Finish<0>(n);
  }
  const auto scale_p = [&](float& x, int j, int e, float decay) {
    x = row + e / 2 * 8 <= 8 * j + column + e % 2 ? x * (scale * decay) : 0;
  };
  for_decays([&](int j, int e, float decay) {
    n[j][e] *= beta[e / 2] * decay;
    if constexpr (kOutputs && !kLean) scale_p(p[j][e], j, e, decay);
  });
  const auto block = [&](const float(&x)[kC / 8][4], int b, Tile& tile) {
#pragma unroll
    for (int e = 0; e < 8; ++e) tile[e / 4][e % 4] = x[2 * b + e / 4][e % 4];
  };
  const auto store_p = [&](int b) {
    Tile tile;
    block(p, b, tile);
    const Fragment packed = Pack(tile);
    if (b >= warp) StoreMatrixTransposed(packed, to.p + BlockAt(lane, b, warp, true));
  };
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    Tile tile;
    if constexpr (kOutputs && !kLean) store_p(b);
    block(n, b, tile);
    if (b == warp) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int i = lane / 4 + e % 4 / 2 * 8, j = e / 4 * 8 + column + e % 2;
        diagonal[warp][j * 20 + i] = tile[e / 4][e % 4];
      }
    } else if (b < kBlocks - 1) {
      const SplitFragment split = Split(tile);
      if (b < warp) StoreBlock(split, to, lane, warp, b);
    }
  }
  __syncwarp();
  if constexpr (kOutputs && kLean) multiply(p, q);
  float x[16];
  InverseRow(diagonal[warp], lane % 16, x);
  if (lane < 16) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4 high, low;
      uint32_t *highs = &high.x, *lows = &low.x;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        SplitPair(x[8 * half + 2 * i], x[8 * half + 2 * i + 1], highs[i], lows[i]);
      const int at = InPanel(16 * warp + lane, 16 * warp + 8 * half);
      *reinterpret_cast<uint4*>(to.x_high + at) = high;
      *reinterpret_cast<uint4*>(to.x_low + at) = low;
    }
  }
  if constexpr (kOutputs && kLean) {
    Finish<0>(p);
    for_decays([&](int j, int e, float decay) { scale_p(p[j][e], j, e, decay); });
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) store_p(b);
  }
  Meet(barrier, kGroup);

  // Blocks (1, 0) and (3, 2): X_ij = -X_ii N_ij X_jj.
  if (warp % 2 == 0) {
    Tile product, x;
    Multiply(LeftBlock(to, lane, warp + 1, warp), RightBlock(to, lane, warp, warp), product);
    Multiply(LeftBlock(to, lane, warp + 1, warp + 1), AsRight(product), x);
#pragma unroll
    for (int e = 0; e < 8; ++e) x[e / 4][e % 4] *= -1;
    StoreBlock(Split(x), to, lane, warp + 1, warp);
  } else {
    meanwhile(warp);
  }
  Meet(barrier, kGroup);

  // The same with blocks of 32 x 32; a warp has 8 columns.
  const int slab = 8 * warp;
  float product[2][3][4] = {};
  const auto multiply_slab = [&](float(&sums)[3][4], const SplitFragment& a, const Fragment& b) {
    MmaHalf(sums[0], a.high, b.at[0], b.at[1]);
    MmaHalf(sums[1], a.high, b.at[2], b.at[3]);
    MmaHalf(sums[2], a.low, b.at[0], b.at[1]);
  };
  const auto sum = [](const float(&sums)[3][4], int e) {
    return sums[0][e] + (sums[1][e] + sums[2][e]);
  };
#pragma unroll
  for (int l = 0; l < 2; ++l) {  // for the right half of the columns, zeros above the diagonal
    const Fragment right = LoadMatrixTransposed((lane < 16 ? to.x_high : to.x_low) +
                                                InPanel(16 * l + lane % 16, slab));
#pragma unroll
    for (int i = 0; i < 2; ++i) multiply_slab(product[i], LeftBlock(to, lane, 2 + i, l), right);
  }
  Fragment right[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      uint32_t high, low;
      SplitPair(sum(product[i], 2 * r), sum(product[i], 2 * r + 1), high, low);
      right[i].at[r] = Transpose(high);
      right[i].at[2 + r] = Transpose(low);
    }
  }
  Meet(barrier, kGroup);  // all have read N
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sums[3][4] = {};
#pragma unroll
    for (int l = 0; l <= i; ++l) multiply_slab(sums, LeftBlock(to, lane, 2 + i, 2 + l), right[l]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      uint32_t high, low;
      SplitPair(-sum(sums, 2 * r), -sum(sums, 2 * r + 1), high, low);
      const int at = InPanel(32 + 16 * i + lane / 4 + 8 * r, slab + column);
      *reinterpret_cast<uint32_t*>(to.x_high + at) = high;
      *reinterpret_cast<uint32_t*>(to.x_low + at) = low;
    }
  }
}

template <class Shared, class Kernel, class... Args>
void LaunchBlocks(CudaStream& stream, Kernel kernel, dim3 blocks, int threads,
                  const Args&... args) {
  constexpr int kBytes = sizeof(Shared) + 1024;
  static_assert(kBytes <= 227 * 1024);
  CudaCheck(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
            "gated_delta");
  kernel<<<blocks, threads, kBytes, stream.handle()>>>(args...);
  CheckLaunch("gated_delta");
}

}  // namespace weft::gated_delta
