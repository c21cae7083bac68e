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
__device__ inline int BlockAt(int lane, int row, int column) {
  return 16 * row * kWidePanel + (InPanel(lane % 16, lane / 16 * 8) ^ 16 * column);
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

// Decays between the 16 tokens of a warp's rows and tokens before them: decay(i, j) = row(i)
// column(j), both relative to the first of the rows.
struct RowDecays {
  const Gates& gates;
  int lane;
  float row[2], first_log2_sum;
  int first_segment;

  __device__ RowDecays(const Gates& of, int in_lane, int block) : gates(of), lane(in_lane) {
    const int i = 16 * block + lane / 4;
    first_log2_sum = gates.log2_sum[16 * block];
    first_segment = gates.segment[16 * block];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row[r] = gates.segment[i + 8 * r] == first_segment
                   ? FastExp2(gates.log2_sum[i + 8 * r] - first_log2_sum)
                   : 0;
    }
  }
  __device__ float2 Column(int block, int half) const {
    const int j = 16 * block + 8 * half + lane % 4 * 2;
    const float2 log2_sum = *reinterpret_cast<const float2*>(gates.log2_sum + j);
    const int2 segment = *reinterpret_cast<const int2*>(gates.segment + j);
    return {segment.x == first_segment ? FastExp2(first_log2_sum - log2_sum.x) : 0,
            segment.y == first_segment ? FastExp2(first_log2_sum - log2_sum.y) : 0};
  }
  // Block (row, column) of decay(i, j) x(i, j), times by[r] in each row; column < row.
  __device__ void Apply(const float (*x)[4], int column, const float (&by)[2], Tile& out) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 decay = Column(column, half);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        out[half][2 * r] = x[half][2 * r] * (by[r] * row[r]) * decay.x;
        out[half][2 * r + 1] = x[half][2 * r + 1] * (by[r] * row[r]) * decay.y;
      }
    }
  }
};

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

// X and, with kOutputs, P of a chunk, by one warpgroup, which meets at `barrier`; gates_ready() is
// called by all its threads while a product runs, and afterwards to.gates are there. `diagonal` is
// memory for N's diagonal blocks.
using Diagonal = float[kBlocks][16 * 20];

template <int kKeys, bool kOutputs = true, class F>
__device__ void Prepare(const BF16* k, const BF16* q, float scale, Prepared& to, Diagonal& diagonal,
                        int barrier, F&& gates_ready) {
  const int thread = FreshThread();
  const int warp = thread % kGroup / kWarp, lane = thread % kWarp;
  float dots[kC / 8][4];
  const auto multiply = [&](const BF16* left) {
    Begin(dots);
#pragma unroll
    for (int d = 0; d < kKeys; d += 16) {
      Products<kC>::Step<false, false>(dots, AlongKeys<kKeys>(left, d), AlongKeys<kKeys>(k, d),
                                       d > 0);
    }
    Commit();
  };
  multiply(k);
  gates_ready();
  Meet(barrier, kGroup);
  Finish<0>(dots);
  const RowDecays decays(to.gates, lane, warp);
  const float beta[2] = {to.gates.beta[16 * warp + lane / 4],
                         to.gates.beta[16 * warp + lane / 4 + 8]};
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
    if (j > warp) break;
    Tile n;
    if (j < warp) {
      decays.Apply(dots + 2 * j, j, beta, n);
      StoreBlock(Split(n), to, lane, warp, j);
    } else {
      Decays(to.gates, warp, warp, lane, n);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int row = lane / 4 + e % 4 / 2 * 8, column = e / 4 * 8 + lane % 4 * 2 + e % 2;
        diagonal[warp][column * 20 + row] =
            n[e / 4][e % 4] * beta[e % 4 / 2] * dots[2 * j + e / 4][e % 4];
      }
    }
  }
  __syncwarp();
  if constexpr (kOutputs) multiply(q);
  {
    float x[16];
    const int row = lane % 16;
    InverseRow(diagonal[warp], row, x);
    if (lane < 16) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint4 high, low;
        uint32_t *highs = &high.x, *lows = &low.x;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float a = x[8 * half + 2 * i], b = x[8 * half + 2 * i + 1];
          highs[i] = PackPair(a, b);
          const float2 rounded = UnpackPair(highs[i]);
          lows[i] = PackPair(a - rounded.x, b - rounded.y);
        }
        const int at = InPanel(16 * warp + row, 16 * warp + 8 * half);
        *reinterpret_cast<uint4*>(to.x_high + at) = high;
        *reinterpret_cast<uint4*>(to.x_low + at) = low;
      }
    }
  }
  Finish<0>(dots);
  Meet(barrier, kGroup);

  const auto store_p = [&] {
    if constexpr (!kOutputs) return;
    const float scales[2] = {scale, scale};
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      if (j > warp) break;
      Tile p;
      if (j < warp) {
        decays.Apply(dots + 2 * j, j, scales, p);
      } else {
        Decays(to.gates, warp, warp, lane, p);
#pragma unroll
        for (int e = 0; e < 8; ++e) p[e / 4][e % 4] *= scale * dots[2 * j + e / 4][e % 4];
      }
      StoreMatrix(Pack(p), to.p + BlockAt(lane, warp, j));
    }
  };
  // Blocks (1, 0) and (3, 2): X_ij = -X_ii N_ij X_jj.
  if (warp % 2 == 0) {
    Tile product = {}, x = {};
    Mma(product, LeftBlock(to, lane, warp + 1, warp), RightBlock(to, lane, warp, warp));
    Mma(x, LeftBlock(to, lane, warp + 1, warp + 1), AsRight(product));
#pragma unroll
    for (int e = 0; e < 8; ++e) x[e / 4][e % 4] *= -1;
    StoreBlock(Split(x), to, lane, warp + 1, warp);
  } else {
    store_p();
  }
  Meet(barrier, kGroup);
  // The same with blocks of 32 x 32; a warp has 8 columns.
  {
    const int column = 8 * warp;
    float product[2][2][4] = {};  // of high and high, and the rest
    const auto multiply_half = [&](float(&sum)[2][4], const SplitFragment& a, const Fragment& b) {
      MmaHalf(sum[0], a.high, b.at[0], b.at[1]);
      MmaHalf(sum[1], a.high, b.at[2], b.at[3]);
      MmaHalf(sum[1], a.low, b.at[0], b.at[1]);
    };
#pragma unroll
    for (int l = 0; l < 2; ++l) {
      if (l < warp / 2) continue;
      const Fragment x = LoadMatrixTransposed((lane < 16 ? to.x_high : to.x_low) +
                                              InPanel(16 * l + lane % 16, column));
#pragma unroll
      for (int i = 0; i < 2; ++i) multiply_half(product[i], LeftBlock(to, lane, 2 + i, l), x);
    }
    Fragment right[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float a = product[i][0][2 * r] + product[i][1][2 * r],
                    b = product[i][0][2 * r + 1] + product[i][1][2 * r + 1];
        const uint32_t high = PackPair(a, b);
        const float2 rounded = UnpackPair(high);
        right[i].at[r] = Transpose(high);
        right[i].at[2 + r] = Transpose(PackPair(a - rounded.x, b - rounded.y));
      }
    }
    Meet(barrier, kGroup);  // all have read N
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float x[2][4] = {};
#pragma unroll
      for (int l = 0; l <= i; ++l) multiply_half(x, LeftBlock(to, lane, 2 + i, 2 + l), right[l]);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float a = -(x[0][2 * r] + x[1][2 * r]), b = -(x[0][2 * r + 1] + x[1][2 * r + 1]);
        const uint32_t high = PackPair(a, b);
        const float2 rounded = UnpackPair(high);
        const int to_at = InPanel(32 + 16 * i + lane / 4 + 8 * r, column + lane % 4 * 2);
        *reinterpret_cast<uint32_t*>(to.x_high + to_at) = high;
        *reinterpret_cast<uint32_t*>(to.x_low + to_at) = PackPair(a - rounded.x, b - rounded.y);
      }
    }
  }
  if (warp % 2 == 0) store_p();
}

}  // namespace weft::gated_delta
