// The backward on sm_90a. StateGradients goes through sequences from the end, as the forward does
// from the beginning, and leaves dV and dS; KeyGradients takes chunks in any order and has the
// gradients of queries, keys and gates.

#include "kernels/gated_delta/gated_delta_hopper.cuh"

namespace weft::gated_delta {
namespace {

// What the first kernel leaves to the second, for every chunk.
struct alignas(128) Saved {
  BF16 x[2][kSquare];  // (I + N)^-1, high and low part
  Gates gates;
};

// c (+)= A B, one step of depth 16.
template <int kN, bool kTransposedA, bool kTransposedB>
__device__ void Multiply(float (&c)[kN / 8][4], uint64_t a, uint64_t b, bool add = true) {
  Products<kN>::template Step<kTransposedA, kTransposedB>(c, a, b, add);
}
template <int kN, bool kTransposedB>
__device__ void Multiply(float (&c)[kN / 8][4], const uint32_t (&a)[4], uint64_t b,
                         bool add = true) {
  Products<kN>::template Step<kTransposedB>(c, a, b, add);
}

// c (+)= A B where of B only the blocks up to the diagonal are there.
__device__ void MultiplyLower(float (&c)[kC / 8][4], const uint32_t (&a)[kBlocks][4], const BF16* b,
                              bool add) {
  Products<64>::Step<true>(c, a[3], Square(b, 48, 0), add);
  Products<48>::Step<true>(c, a[2], Square(b, 32, 0), true);
  Products<32>::Step<true>(c, a[1], Square(b, 16, 0), true);
  Products<16>::Step<true>(c, a[0], Square(b, 0, 0), true);
}

// Columns 16 t to 16 t + 15 of a sum as a left operand.
template <int kN>
__device__ void PackLeft(const float (&x)[kN][4], int t, uint32_t (&to)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float(&from)[4] = x[2 * t + i / 2];
    to[i] = PackPair(from[i % 2 * 2], from[i % 2 * 2 + 1]);
  }
}

// Blocks of 16 x 16 as left operands have them: operand (i, j) is panel (row + i, column + j), or
// transposed, (row + j, column + i).
__device__ void LoadTransposed(uint32_t (&x)[4], const BF16* panel, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  const Fragment f = LoadMatrixTransposed(
      panel + InPanel(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = f.at[i];
}
__device__ void StoreTransposed(const uint32_t (&x)[4], BF16* panel, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  StoreMatrixTransposed({x[0], x[1], x[2], x[3]},
                        panel + InPanel(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
}
__device__ void StoreDirect(const uint32_t (&x)[4], BF16* panel, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  StoreMatrix({x[0], x[1], x[2], x[3]}, panel + InPanel(row + lane % 16, column + lane / 16 * 8));
}
template <int kKeys>
__device__ int InKeys(int row, int column) {
  constexpr int kPanel = kKeyPanel<kKeys>;
  return column / kPanel * kPanel * kC + InPanel<kPanel>(row, column % kPanel);
}

// Of columns that are tokens: the numbers for this lane's columns of block j.
__device__ float2 Tokens(const float* by, int j) {
  return *reinterpret_cast<const float2*>(by + 8 * j + threadIdx.x % 4 * 2);
}
template <int kN>
__device__ void ScaleTokens(float (&x)[kN][4], const float* by) {
#pragma unroll
  for (int j = 0; j < kN; ++j) {
    const float2 pair = Tokens(by, j);
    x[j][0] *= pair.x, x[j][1] *= pair.y, x[j][2] *= pair.x, x[j][3] *= pair.y;
  }
}

// x(i, j) *= factor decay(i, j), and 0 for j > i, where i are the rows of x, or its columns.
template <bool kTransposed>
__device__ void ScaleByDecay(const Gates& gates, int row, float factor, float (&x)[8][4]) {
  const int column = threadIdx.x % 4 * 2;
  const float own[2] = {gates.log2_sum[row], gates.log2_sum[row + 8]};
  const int segment[2] = {gates.segment[row], gates.segment[row + 8]};
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 other = *reinterpret_cast<const float2*>(gates.log2_sum + 8 * j + column);
    const int2 other_segment = *reinterpret_cast<const int2*>(gates.segment + 8 * j + column);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int r = row + e / 2 * 8, c = 8 * j + column + e % 2;
      const float log2_sum = e % 2 ? other.y : other.x;
      const bool decays = (kTransposed ? r <= c : c <= r) &&
                          segment[e / 2] == (e % 2 ? other_segment.y : other_segment.x);
      const float decay = FastExp2(kTransposed ? log2_sum - own[e / 2] : own[e / 2] - log2_sum);
      x[j][e] = decays ? x[j][e] * (factor * decay) : 0;
    }
  }
}

__device__ float QuadSum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// The gradient of the state -----------------------------------------------------------------------

// Warpgroup 0 loads and prepares chunk after chunk, the last first. Each of the others holds 64
// columns of values of dS^T in registers and takes the left operands of all products from there.
template <int kWidth, int kValueGroups>
struct StatePlan {
  static constexpr int kKeys = kWidth, kGroups = kValueGroups;
  static constexpr int kThreads = (1 + kGroups) * kGroup;
  static constexpr int kStages = 3, kTiles = 2;
  // Of a preparing and of another thread.
  static constexpr int kFewer = kGroups == 3 ? 104 : 136, kMore = kGroups == 3 ? 136 : 184;

  struct alignas(1024) Stage {
    BF16 k[kC * kKeyWidth<kKeys>], q[kC * kKeyWidth<kKeys>];
    BF16 dy[kGroups][kSquare];  // dV in the end
    Gates gates;
  };
  struct Shared {
    Stage stages[kStages];
    Prepared tiles[kTiles];
    Diagonal diagonal;
    Barrier full[kStages], empty[kStages], ready[kTiles], taken[kTiles];
  };
};

struct StateMaps {
  CUtensorMap q, k, dy, dv, add_dv;
};

// Where heads are few, a sequence is cut into segments. To the gradient of the state a segment is
// an affine map, which a first launch finds: dS^T before it = (dS^T after it) A + C, where A comes
// from the rows of an identity without dY, and C from zero. The last segment's C is that from
// dfinal.
struct Segments {
  int chunks, count;   // chunks of one; how many
  float* a = nullptr;  // [count, B H, K, K]
  float* c = nullptr;  // [count, B H, V, K], which becomes dS^T before the segment
};

// What a block does.
struct Span {
  int b, h, values, segment, first, end;
  bool identity;  // whether dS^T begins as an identity
  bool saves;     // what it prepares

  template <class Plan, bool kMaps>
  __device__ static Span Of(const Sizes& s, const Segments& segments) {
    constexpr int kValues = Plan::kGroups * kGroupRows;
    Span span;
    span.b = blockIdx.x / s.H;
    span.h = blockIdx.x % s.H;
    const int parts = (s.V + kValues - 1) / kValues;
    span.identity = kMaps && blockIdx.y >= parts;
    span.values = (blockIdx.y - (span.identity ? parts : 0)) * kValues;
    span.segment = blockIdx.z + kMaps;
    span.first = span.segment * segments.chunks;
    span.end = min(span.first + segments.chunks, s.chunks);
    span.saves = !kMaps && span.values == 0;
    return span;
  }
};

// By warpgroup 0. Warp 1 also loads the chunk that comes next and saves the tile of the one before
// for the second kernel; warp 3 scans the next gates.
template <class Plan, bool kMaps>
__device__ void LoadAndPrepare(const Backward<BF16>& f, const StateMaps& maps, const Span& span,
                               Saved* saved, typename Plan::Shared& shared) {
  constexpr int kKeys = Plan::kKeys;
  const int last = span.end - 1, warp = __shfl_sync(~0u, threadIdx.x / kWarp, 0);
  const bool loads_here = threadIdx.x == kWarp;
  const auto chunk = [&](int n) { return Chunk(f, span.b, n, span.h); };
  Ring<Plan::kStages> loads, stages;
  Ring<Plan::kTiles> tiles, tile_before;
  const auto load = [&](int n) {
    const Chunk c = chunk(n);
    auto& stage = shared.stages[loads.stage];
    Barrier& full = shared.full[loads.stage];
    Wait(shared.empty[loads.stage], loads.parity ^ 1);
    ArriveAndExpect(full,
                    sizeof(stage.k) + sizeof(stage.q) + (span.identity ? 0 : sizeof(stage.dy)));
    LoadKeys<kKeys>(stage.k, maps.k, c, full);
    LoadKeys<kKeys>(stage.q, maps.q, c, full);
    if (!span.identity) {
      LoadTile<Plan::kGroups * kWidePanel>(stage.dy[0], maps.dy, kC, c.b, c.h, c.begin, full,
                                           span.values);
    }
    loads.Next();
  };
  const auto save = [&](int n, const Gates& gates) {
    Wait(shared.ready[tile_before.stage], tile_before.parity);
    Saved& to = saved[chunk(n).Index(f)];
    StoreBytes(to.x, shared.tiles[tile_before.stage].x_high, sizeof to.x);
    StoreBytes(&to.gates, &gates, sizeof to.gates);
    CommitStores();
  };
  if (loads_here) load(last);
  GatePair gates;
  if (warp == 3) {
    ScanGates(GatePair(f, chunk(last)), shared.stages[0].gates);
    if (last > span.first) gates = GatePair(f, chunk(last - 1));
    FenceShared();
  }
  Meet(1, kGroup);
  const Gates* gates_before = nullptr;
  for (int n = last; n >= span.first; --n, tiles.Next()) {
    auto& stage = shared.stages[stages.stage];
    Prepared& tile = shared.tiles[tiles.stage];
    Wait(shared.full[stages.stage], stages.parity);
    stages.Next();
    Wait(shared.taken[tiles.stage], tiles.parity ^ 1);
    Prepare<kKeys, true, Plan::kGroups == 3>(
        f.scale, f.erase, stage.k, stage.q, stage.gates, tile, shared.diagonal, 1, [&](int) {
          // Into the stage of chunk n + 2: nothing needs it any more when that of n is prepared.
          if (loads_here && n > span.first) load(n - 1);
          if (loads_here && span.saves && n < last) save(n + 1, *gates_before);
          if (warp == 3 && n > span.first) {
            ScanGates(gates, shared.stages[stages.stage].gates);
            if (n - 1 > span.first) gates = GatePair(f, chunk(n - 2));
          }
        });
    FenceShared();
    __syncwarp();
    Release(shared.ready[tiles.stage]);
    if (loads_here && span.saves) {
      if (n < last) {
        WaitForStores();
        Arrive(shared.taken[tile_before.stage]);
        tile_before.Next();
      }
      gates_before = &stage.gates;
    }
    __syncwarp();
  }
  if (loads_here && span.saves) {
    save(span.first, *gates_before);
    WaitForStores();
  }
}

// How many chunks of a segment there are up to the one over whose end nothing reaches back to the
// beginning: decays are less than the rounding of any sum, or a document begins. No gradient grows
// on its way. 0: there is no such chunk.
template <class Plan>
__device__ int Remembered(const Backward<BF16>& f, const Span& span, float* sums) {
  constexpr float kForgotten = -45;  // logarithm of the decay
  constexpr int kWarps = Plan::kThreads / kWarp;
  const int warp = threadIdx.x / kWarp;
  float decay = 0;
  for (int n = span.first; n < span.end; n += kWarps) {
    if (n + warp < span.end) {
      const GatePair pair(f, Chunk(f, span.b, n + warp, span.h));
      float sum = 0;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int t = pair.token + e;
        sum += t > 0 && pair.doc_start[e] == t ? kForgotten : pair.log_a[e];
      }
      sum = WarpSum(sum);
      if (threadIdx.x % kWarp == 0) sums[warp] = sum;
    }
    __syncthreads();
    for (int i = 0; i < kWarps && n + i < span.end; ++i) {
      decay += sums[i];
      if (decay < kForgotten) return n + i + 1 - span.first;
    }
    __syncthreads();
  }
  return 0;
}

template <class Plan, bool kMaps>
__global__ void __launch_bounds__(Plan::kThreads, 1)
    HopperStateGradients(const __grid_constant__ Backward<BF16> f,
                         const __grid_constant__ StateMaps maps,
                         const __grid_constant__ Segments segments, Saved* saved, BF16* dstates) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kKeys = Plan::kKeys;
  auto& shared = SharedMemory<typename Plan::Shared>();
  Span span = Span::Of<Plan, kMaps>(f, segments);
  bool from_zero = kMaps && span.segment < segments.count - 1;
  if constexpr (kMaps) {
    if (span.identity && span.segment == segments.count - 1) return;
    const int remembered = Remembered<Plan>(f, span, shared.diagonal[0]);
    if (remembered > 0) {
      if (span.identity) {
        const int64_t head = int64_t{span.segment} * gridDim.x + blockIdx.x;
        for (int i = threadIdx.x; i < kKeys * kKeys; i += Plan::kThreads)
          segments.a[head * kKeys * kKeys + i] = 0;
        return;
      }
      span.end = span.first + remembered;
      from_zero = true;
    }
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < Plan::kStages; ++i) {
      Init(shared.full[i], 1);
      Init(shared.empty[i], Plan::kGroups * kGroup / kWarp);
    }
    for (int i = 0; i < Plan::kTiles; ++i) {
      Init(shared.ready[i], kGroup / kWarp);
      Init(shared.taken[i], Plan::kGroups * kGroup / kWarp + span.saves);
    }
    FenceInit();
  }
  // Blocks behind the diagonal stay zero: the second kernel multiplies by whole tiles.
  for (auto& tile : shared.tiles) {
    for (int i = threadIdx.x; i < 2 * kSquare / 8; i += Plan::kThreads)
      reinterpret_cast<uint4*>(tile.x_high)[i] = {};
  }
  FenceShared();
  if (kMaps && span.identity) {
    for (auto& stage : shared.stages) {
      for (int i = threadIdx.x; i < Plan::kGroups * kSquare / 8; i += Plan::kThreads)
        reinterpret_cast<uint4*>(stage.dy)[i] = {};
    }
  }
  __syncthreads();
  const int group = GroupIndex() - 1, b = span.b, h = span.h;
  if (group < 0) {
    FewerRegisters<Plan::kFewer>();
    LoadAndPrepare<Plan, kMaps>(f, maps, span, saved, shared);
  } else {
    MoreRegisters<Plan::kMore>();
    const int values = span.values + group * kGroupRows;
    const int rows = span.identity ? kKeys : f.V;
    // As the segments' rows lie in memory.
    const int64_t head = int64_t{span.segment} * gridDim.x + blockIdx.x;
    float* from = segments.c + head * f.V * kKeys;
    float* map = span.identity ? segments.a + head * kKeys * kKeys : from;
    float ds[kKeys / 8][4] = {};
    const auto for_each = [&](auto&& visit) {
      const int thread = FreshThread(), row = values + RowInGroup(thread), lane = thread % kWarp;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int k = 8 * j + lane % 4 * 2 + e % 2, v = row + e / 2 * 8;
          if (v < rows) visit(ds[j][e], k, v);
        }
      }
    };
    if (span.identity) {
      for_each([&](float& x, int k, int v) { x = k == v; });
    } else if (!from_zero && span.segment < segments.count - 1) {
      const float* after = segments.c + (head + gridDim.x) * f.V * kKeys;
      for_each([&](float& x, int k, int v) { x = after[v * kKeys + k]; });
    } else if (!from_zero && f.dfinal) {
      for_each([&](float& x, int k, int v) { x = f.dfinal(b, h, k)[v]; });
    }
    Ring<Plan::kStages> stages;
    Ring<Plan::kTiles> tiles;
    Barrier* before = nullptr;  // of the stage from which dV is still stored
    for (int n = span.end - 1; n >= span.first; --n, stages.Next(), tiles.Next()) {
      const Chunk c(f, b, n, h);
      const int thread = FreshThread(), warp = thread % kGroup / kWarp;
      const int row = values + RowInGroup(thread);
      const bool leader = thread % kGroup == 0;
      auto& stage = shared.stages[stages.stage];
      const Prepared& tile = shared.tiles[tiles.stage];
      const Gates& gates = stage.gates;
      BF16* values_tile = stage.dy[group];
      // dU^T = to_end (dS^T K^T) + dY^T P
      uint32_t left[kKeys / 16][4], dy[kBlocks][4], du_left[kBlocks][4], minus_dv[kBlocks][4];
      float du[kC / 8][4], dv[kC / 8][4];
#pragma unroll
      for (int x = 0; x < kKeys / 16; ++x) PackLeft(ds, x, left[x]);
      Wait(shared.full[stages.stage], stages.parity);
      Begin(du);
#pragma unroll
      for (int x = 0; x < kKeys / 16; ++x)
        Multiply<kC, false>(du, left[x], AlongKeys<kKeys>(stage.k, 16 * x), x > 0);
      Commit();
      if constexpr (!kMaps) {
        BF16* to = dstates + (int64_t{c.Index(f)} * f.V + row) * kKeys + NeighbourColumn();
#pragma unroll
        for (int x = 0; x < kKeys / 16; ++x) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const auto [low, high] = Exchange(left[x][r], left[x][2 + r]);
            if (row + 8 * r < f.V)
              *reinterpret_cast<uint2*>(to + 8 * r * kKeys + 16 * x) = {low, high};
          }
        }
      }
      if (leader && before) {
        WaitForStores();
        Arrive(*before);
      }
      before = &shared.empty[stages.stage];
      __syncwarp();
      Wait(shared.ready[tiles.stage], tiles.parity);
      Finish<0>(du);
#pragma unroll
      for (int t = 0; t < kBlocks; ++t) LoadTransposed(dy[t], values_tile, 16 * t, 16 * warp);
      ScaleTokens(du, gates.to_end);
      Begin(du);
      MultiplyLower(du, dy, tile.p, true);
      Commit();
      const float whole = gates.Whole();
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) ds[j][e] *= whole;
      }
      Finish<0>(du);
      // dV^T = beta (dU^T X),  dS^T = whole dS^T + (scale from_start dY)^T Q - (from_start dV)^T K
#pragma unroll
      for (int t = 0; t < kBlocks; ++t) PackLeft(du, t, du_left[t]);
      Begin(dv);
      MultiplyLower(dv, du_left, tile.x_high, false);
      MultiplyLower(dv, du_left, tile.x_low, true);
      Commit();
      Finish<0>(dv);
      ScaleTokens(dv, gates.beta);
#pragma unroll
      for (int t = 0; t < kBlocks; ++t) {
        // dY is read again: registers are short.
        uint32_t packed[4];
        LoadTransposed(dy[t], values_tile, 16 * t, 16 * warp);
        PackLeft(dv, t, packed);
        if constexpr (!kMaps) StoreTransposed(packed, values_tile, 16 * t, 16 * warp);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 start = Tokens(gates.from_start, 2 * t + i / 2), pair = UnpackPair(dy[t][i]);
          const float* x = &dv[2 * t + i / 2][i % 2 * 2];
          dy[t][i] = PackPair(f.scale * start.x * pair.x, f.scale * start.y * pair.y);
          minus_dv[t][i] = PackPair(-f.erase * start.x * x[0], -f.erase * start.y * x[1]);
        }
      }
      Begin(ds);
#pragma unroll
      for (int t = 0; t < kBlocks; ++t) {
        Multiply<kKeys, true>(ds, dy[t], AlongTokens<kKeys>(stage.q, 16 * t));
        Multiply<kKeys, true>(ds, minus_dv[t], AlongTokens<kKeys>(stage.k, 16 * t));
      }
      Commit();
      if constexpr (!kMaps) {
        FenceShared();
        Meet(2 + group, kGroup);
        if (leader) {
          StorePanel(maps.dv, values_tile, b, h, c.begin, values);
          if (f.add_dv) AddPanel(maps.add_dv, values_tile, b, h, c.begin, values);
          CommitStores();
        }
      }
      Finish<0>(ds);
      Release(shared.taken[tiles.stage]);
      if (warp > 0) Release(*before);
    }
    if (threadIdx.x % kGroup == 0) WaitForStores();
    if constexpr (kMaps) {
      for_each([&](float& x, int k, int v) { map[v * kKeys + k] = x; });
    } else if (f.dinitial && span.first == 0) {
      for_each(
          [&](float& x, int k, int v) { PutFloat(f.dinitial(b, h, k)[v], x, f.add_dinitial); });
    }
  }
#else
  __trap();
#endif
}

// Gradients of queries, keys and gates ------------------------------------------------------------

template <int kWidth>
struct GradientPlan {
  static constexpr int kKeys = kWidth, kStages = kKeys == 128 ? 2 : 3;
  static constexpr int kKeyTile = kC * kKeyWidth<kKeys>;
  struct alignas(1024) Slice {
    BF16 u[kSquare];  // V, then U
    BF16 dy[kSquare], dv[kSquare];
    BF16 state[kKeyTile], dstate[kKeyTile];  // rows are values
  };
  struct Shared {
    Slice slices[kStages];
    BF16 q[2][kKeyTile], k[2][kKeyTile];
    BF16 x[2][kSquare];
    BF16 minus_r[kSquare];
    alignas(128) Gates gates[2];
    // For the gradients of gates: <q, dq>, <k, read - write>, to_end <k, dS u> and <u, dv> of every
    // token, <S, dS> in parts.
    float query_dot[2][kC], key_dot[2][kC], to_state[2][kC], u_dv[2][kC], across[2][4];
    Barrier full[kStages], ready[kStages], empty[kStages];
    Barrier chunk_full[2], chunk_empty[2], x_full, x_empty, dots[2];
  };
};

struct GradientMaps {
  CUtensorMap q, k, v, dy, dv, states, dstates;
};

// <row of x, row of tile>, this lane's part of it.
template <int kKeys>
__device__ void RowDots(const float (&x)[kKeys / 8][4], const BF16* tile, int row,
                        float (&dot)[2]) {
  dot[0] = dot[1] = 0;
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float2 pair = UnpackPair(*reinterpret_cast<const uint32_t*>(
          tile + InKeys<kKeys>(row + 8 * r, 8 * j + threadIdx.x % 4 * 2)));
      dot[r] += x[j][2 * r] * pair.x + x[j][2 * r + 1] * pair.y;
    }
  }
}

template <int kN>
__device__ void ScaleRows(float (&x)[kN][4], float first, float second) {
#pragma unroll
  for (int j = 0; j < kN; ++j)
    x[j][0] *= first, x[j][1] *= first, x[j][2] *= second, x[j][3] *= second;
}

// Rows of a gradient, 16 columns of two rows at a time.
template <int kN>
__device__ void StoreGradient(const float (&x)[kN][4], const Rows<BF16>& to, const Chunk& c,
                              int row, bool add) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = row + 8 * r;
    BF16* at = to(c.b, c.begin + i, c.h) + NeighbourColumn();
#pragma unroll
    for (int j = 0; j < kN; j += 2) {
      auto [low, high] = Exchange(float2{x[j][2 * r], x[j][2 * r + 1]},
                                  float2{x[j + 1][2 * r], x[j + 1][2 * r + 1]});
      if (i >= c.count) continue;
      uint2* pack = reinterpret_cast<uint2*>(at + 8 * j);
      if (add) {
        const uint2 old = *pack;
        const float2 l = UnpackPair(old.x), h = UnpackPair(old.y);
        low.x += l.x, low.y += l.y, high.x += h.x, high.y += h.y;
      }
      *pack = {PackPair(low.x, low.y), PackPair(high.x, high.y)};
    }
  }
}

// log_a_i decays what tokens from i on read of what was written before i: the sum of the gradients
// from i to the end of its segment. The last segment reaches into the state after the chunk. By one
// warp; a lane has two tokens.
template <class Shared>
__device__ void GateGradients(const Backward<BF16>& f, const Chunk& c, const Shared& s,
                              int buffer) {
  const Gates& gates = s.gates[buffer];
  const int lane = threadIdx.x % kWarp, i = 2 * lane;
  const auto pair = [&](const float* x) { return *reinterpret_cast<const float2*>(x + i); };
  const float2 to_state = pair(s.to_state[buffer]), query = pair(s.query_dot[buffer]),
               key = pair(s.key_dot[buffer]), u_dv = pair(s.u_dv[buffer]), beta = pair(gates.beta);
  const float* across = s.across[buffer];
  const float after = WarpSum(to_state.x + to_state.y) +
                      gates.Whole() * ((across[0] + across[1]) + (across[2] + across[3]));
  const int segment[2] = {gates.segment[i], gates.segment[i + 1]};
  const int before = __shfl_up_sync(~0u, segment[1], 1),
            next = __shfl_down_sync(~0u, segment[0], 1);
  const bool last = lane == kWarp - 1;
  float d[2] = {query.x + key.x, query.y + key.y};
  if (last) d[1] += after;
  // The sum from the lane's first token on is sum + (more ? that of the next lane : 0).
  float sum = segment[0] == segment[1] ? d[0] + d[1] : d[0];
  bool more = !last && segment[0] == next;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const float further = __shfl_down_sync(~0u, sum, offset);
    const bool beyond = __shfl_down_sync(~0u, more, offset);
    if (more) sum += further;
    more = more && beyond;
  }
  const float following = __shfl_down_sync(~0u, sum, 1);
  const float sums[2] = {sum, !last && segment[1] == next ? d[1] + following : d[1]};
  const bool boundary[2] = {segment[0] != (lane > 0 ? before : 0), segment[1] != segment[0]};
  const float dbeta[2] = {u_dv.x / beta.x / beta.x, u_dv.y / beta.y / beta.y};
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (i + e >= c.count) break;
    const int t = c.begin + i + e;
    f.PutDLogA(c.b, t, c.h, boundary[e] ? 0 : sums[e]);
    f.PutDBeta(c.b, t, c.h, dbeta[e]);
  }
}

// Blocks go through chunks of heads, slice by slice of 64 values. Loads run ahead of the products
// by all slices there is memory for, and by the next chunk's queries and keys.
template <class Plan>
struct Gradients {
  static constexpr int kKeys = Plan::kKeys;
  const Backward<BF16>& f;
  typename Plan::Shared& s;
  Ring<Plan::kStages> slices;
  Ring<2> buffers;  // of chunks

  // work(index of the chunk)
  template <class F>
  __device__ void ForChunks(F&& work) {
    for (int index = blockIdx.x; index < f.tiles(); index += gridDim.x, buffers.Next()) work(index);
  }
  // work(slice, its stage, whether it is the first), once it is loaded
  template <class F>
  __device__ void ForSlices(F&& work) {
    for (int v = 0; v < f.V; v += kWidePanel, slices.Next()) {
      Wait(s.full[slices.stage], slices.parity);
      work(s.slices[slices.stage], slices.stage, v == 0);
    }
  }

  // By one thread.
  __device__ void Load(const GradientMaps& maps, const Saved* saved) {
    ForChunks([&, x_parity = 1](int index) mutable {
      const Chunk c(f, index);
      const int to = buffers.stage;
      Wait(s.chunk_empty[to], buffers.parity ^ 1);
      Barrier& chunk_full = s.chunk_full[to];
      ArriveAndExpect(chunk_full, sizeof s.q[to] + sizeof s.k[to] + sizeof s.gates[to]);
      LoadKeys<kKeys>(s.q[to], maps.q, c, chunk_full);
      LoadKeys<kKeys>(s.k[to], maps.k, c, chunk_full);
      LoadBytes(&s.gates[to], &saved[index].gates, sizeof s.gates[to], chunk_full);
      Wait(s.x_empty, x_parity);
      x_parity ^= 1;
      ArriveAndExpect(s.x_full, sizeof s.x);
      LoadBytes(s.x, saved[index].x, sizeof s.x, s.x_full);
      for (int v = 0; v < f.V; v += kWidePanel, slices.Next()) {
        auto& slice = s.slices[slices.stage];
        Barrier& full = s.full[slices.stage];
        Wait(s.empty[slices.stage], slices.parity ^ 1);
        ArriveAndExpect(full, sizeof slice);
        const auto load_state = [&](BF16* state, const CUtensorMap& map) {
          LoadTile<kKeyWidth<kKeys>, kKeyPanel<kKeys>>(state, map, kC, c.b * f.chunks + c.n, c.h, v,
                                                       full);
        };
        const auto load_values = [&](BF16* values, const CUtensorMap& map) {
          LoadTile<kWidePanel>(values, map, kC, c.b, c.h, c.begin, full, v);
        };
        load_state(slice.state, maps.states);
        load_values(slice.u, maps.v);
        load_values(slice.dy, maps.dy);
        load_values(slice.dv, maps.dv);
        load_state(slice.dstate, maps.dstates);
      }
    });
  }

  // U = X beta (V - from_start K S), transposed: rows are values, columns tokens.
  __device__ void WrittenRows() {
    const int warp = threadIdx.x % kGroup / kWarp;
    ForChunks([&, x_parity = 0](int) mutable {
      const BF16* k = s.k[buffers.stage];
      const Gates& gates = s.gates[buffers.stage];
      Wait(s.chunk_full[buffers.stage], buffers.parity);
      ForSlices([&](auto& slice, int stage, bool first) {
        float x[kC / 8][4];
        uint32_t r[kBlocks][4];
        Begin(x);
#pragma unroll
        for (int d = 0; d < kKeys; d += 16) {
          Multiply<kC, false, false>(x, AlongKeys<kKeys>(slice.state, d), AlongKeys<kKeys>(k, d),
                                     d > 0);
        }
        Commit();
#pragma unroll
        for (int t = 0; t < kBlocks; ++t) LoadTransposed(r[t], slice.u, 16 * t, 16 * warp);
        Finish<0>(x);
#pragma unroll
        for (int j = 0; j < kC / 8; ++j) {
          const float2 start = Tokens(gates.from_start, j), beta = Tokens(gates.beta, j);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            uint32_t& pair = r[j / 2][j % 2 * 2 + half];
            const float2 v = UnpackPair(pair);
            pair = PackPair(beta.x * (v.x - f.erase * start.x * x[j][2 * half]),
                            beta.y * (v.y - f.erase * start.y * x[j][2 * half + 1]));
          }
        }
        if (first) Wait(s.x_full, x_parity);
        Begin(x);
#pragma unroll
        for (int part = 0; part < 2; ++part) {
#pragma unroll
          for (int t = 0; t < kBlocks; ++t)
            Multiply<kC, false>(x, r[t], Square(s.x[part], 0, 16 * t), part + t > 0);
        }
        Commit();
        Finish<0>(x);
#pragma unroll
        for (int t = 0; t < kBlocks; ++t) {
          PackLeft(x, t, r[t]);
          StoreTransposed(r[t], slice.u, 16 * t, 16 * warp);
        }
        FenceShared();
        Release(s.ready[stage]);
      });
      x_parity ^= 1;
      Release(s.x_empty);
      Release(s.chunk_empty[buffers.stage]);
    });
  }

  // dQ = scale from_start dY S^T + dP K; then the gradients of gates from everybody's dots.
  __device__ void Queries() {
    ForChunks([&](int index) {
      float dq[kKeys / 8][4] = {}, x[kC / 8][4] = {}, across = 0;
      ForSlices([&](auto& slice, int stage, bool) {
        Begin(dq, x);
#pragma unroll
        for (int d = 0; d < kWidePanel; d += 16) {
          Multiply<kKeys, false, true>(dq, Square(slice.dy, 0, d),
                                       AlongTokens<kKeys>(slice.state, d));
        }
        Commit();
        for (int at = threadIdx.x % kGroup * 4; at < Plan::kKeyTile; at += kGroup * 4) {
          float a[4], b[4];
          weft::Load(slice.state + at, a);
          weft::Load(slice.dstate + at, b);
#pragma unroll
          for (int e = 0; e < 4; ++e) across += a[e] * b[e];
        }
        Wait(s.ready[stage], slices.parity);
#pragma unroll
        for (int d = 0; d < kWidePanel; d += 16)
          Multiply<kC, false, false>(x, Square(slice.dy, 0, d), Square(slice.u, 0, d));
        Commit();
        Finish<0>(dq, x);
        Release(s.empty[stage]);
      });
      const int thread = FreshThread(), warp = thread % kGroup / kWarp, lane = thread % kWarp;
      const int row = RowInGroup(thread), buffer = buffers.stage;
      const Gates& gates = s.gates[buffer];
      Wait(s.chunk_full[buffer], buffers.parity);
      ScaleByDecay<false>(gates, row, f.scale, x);
      uint32_t dp[kBlocks][4];
#pragma unroll
      for (int t = 0; t < kBlocks; ++t) PackLeft(x, t, dp[t]);
      ScaleRows(dq, f.scale * gates.from_start[row], f.scale * gates.from_start[row + 8]);
      Begin(dq);
#pragma unroll
      for (int t = 0; t < kBlocks; ++t)
        Multiply<kKeys, true>(dq, dp[t], AlongTokens<kKeys>(s.k[buffer], 16 * t));
      Commit();
      Finish<0>(dq);
      const Chunk c(f, index);
      float dots[2];
      RowDots<kKeys>(dq, s.q[buffer], row, dots);
      StoreGradient(dq, f.dq, c, row, f.add_dq);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float dot = QuadSum(dots[r]);
        if (lane % 4 == 0) s.query_dot[buffer][row + 8 * r] = dot;
      }
      across = WarpSum(across);
      if (lane == 0) s.across[buffer][warp] = across;
      Release(s.dots[buffer]);
      if (warp == 0) {
        Wait(s.dots[buffer], buffers.parity);
        GateGradients(f, c, s, buffer);
      }
      Release(s.chunk_empty[buffer]);
    });
  }

  // read  = - from_start dV S^T - R K
  // write = to_end U dS^T + dP^T Q - R^T K
  __device__ void Keys(int barrier) {
    ForChunks([&](int index) {
      // x is (dY U^T)^T, its rows are written; y is dV U^T, its rows are read.
      float read[kKeys / 8][4] = {}, write[kKeys / 8][4] = {}, x[kC / 8][4] = {}, y[kC / 8][4] = {};
      int before = 0;  // the stage whose products may still run
      Begin(read, write, x, y);
      ForSlices([&](auto& slice, int stage, bool first) {
#pragma unroll
        for (int d = 0; d < kWidePanel; d += 16) {
          Multiply<kKeys, false, true>(read, Square(slice.dv, 0, d),
                                       AlongTokens<kKeys>(slice.state, d));
        }
        Commit();
        Finish<1>();
        if (!first) Release(s.empty[before]);
        before = stage;
        Wait(s.ready[stage], slices.parity);
#pragma unroll
        for (int d = 0; d < kWidePanel; d += 16)
          Multiply<kC, false, false>(x, Square(slice.u, 0, d), Square(slice.dy, 0, d));
#pragma unroll
        for (int d = 0; d < kWidePanel; d += 16)
          Multiply<kC, false, false>(y, Square(slice.dv, 0, d), Square(slice.u, 0, d));
#pragma unroll
        for (int d = 0; d < kWidePanel; d += 16) {
          Multiply<kKeys, false, true>(write, Square(slice.u, 0, d),
                                       AlongTokens<kKeys>(slice.dstate, d));
        }
        Commit();
      });
      Finish<0>(read, write, x, y);
      Release(s.empty[before]);

      const int thread = FreshThread(), warp = thread % kGroup / kWarp, lane = thread % kWarp;
      const int row = RowInGroup(thread), buffer = buffers.stage;
      const Gates& gates = s.gates[buffer];
      const BF16 *k = s.k[buffer], *q = s.q[buffer];
      Wait(s.chunk_full[buffer], buffers.parity);
      uint32_t dp[kBlocks][4], minus_r[kBlocks][4];
      ScaleByDecay<true>(gates, row, f.scale, x);
#pragma unroll
      for (int t = 0; t < kBlocks; ++t) PackLeft(x, t, dp[t]);
#pragma unroll
      for (int j = 0; j < kC / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int i = row + e / 2 * 8;
          if (8 * j + lane % 4 * 2 + e % 2 == i) {
            s.u_dv[buffer][i] = y[j][e];
            y[j][e] = 0;
          }
        }
      }
      ScaleByDecay<false>(gates, row, -f.erase, y);
#pragma unroll
      for (int t = 0; t < kBlocks; ++t) {
        PackLeft(y, t, minus_r[t]);
        StoreDirect(minus_r[t], s.minus_r, 16 * warp, 16 * t);
      }
      FenceShared();
      ScaleRows(read, -f.erase * gates.from_start[row], -f.erase * gates.from_start[row + 8]);
      ScaleRows(write, gates.to_end[row], gates.to_end[row + 8]);
      float to_state[2], reads[2], writes[2];
      RowDots<kKeys>(write, k, row, to_state);
      Meet(barrier, kGroup);
      Begin(read, write);
#pragma unroll
      for (int t = 0; t < kBlocks; ++t) {
        Multiply<kKeys, true>(read, minus_r[t], AlongTokens<kKeys>(k, 16 * t));
        Multiply<kKeys, true>(write, dp[t], AlongTokens<kKeys>(q, 16 * t));
        Multiply<kKeys, true, true>(write, Square(s.minus_r, 16 * t, 0),
                                    AlongTokens<kKeys>(k, 16 * t));
      }
      Commit();
      Finish<0>(read, write);
      Meet(barrier, kGroup);  // minus_r may be overwritten
      RowDots<kKeys>(read, k, row, reads);
      RowDots<kKeys>(write, k, row, writes);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float dot = QuadSum(reads[r] - writes[r]), z = QuadSum(to_state[r]);
        if (lane % 4 == 0) {
          s.key_dot[buffer][row + 8 * r] = dot;
          s.to_state[buffer][row + 8 * r] = z;
        }
      }
      Release(s.dots[buffer]);
      Release(s.chunk_empty[buffer]);
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) write[j][e] += read[j][e];
      }
      StoreGradient(write, f.dk, Chunk(f, index), row, f.add_dk);
    });
  }
};

template <class Plan>
__global__ void __launch_bounds__(4 * kGroup, 1)
    HopperKeyGradients(const __grid_constant__ Backward<BF16> f,
                       const __grid_constant__ GradientMaps maps, const Saved* saved) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  auto& s = SharedMemory<typename Plan::Shared>();
  if (threadIdx.x == 0) {
    constexpr int kWarps = kGroup / kWarp;
    for (int i = 0; i < Plan::kStages; ++i) {
      Init(s.full[i], 1);
      Init(s.ready[i], kWarps);
      Init(s.empty[i], 2 * kWarps);
    }
    for (int i = 0; i < 2; ++i) {
      Init(s.chunk_full[i], 1);
      Init(s.chunk_empty[i], 3 * kWarps);
      Init(s.dots[i], 2 * kWarps);
    }
    Init(s.x_full, 1);
    Init(s.x_empty, kWarps);
    FenceInit();
  }
  __syncthreads();
  Gradients<Plan> gradients{f, s};
  const int group = GroupIndex();
  if (group == 0) {
    FewerRegisters<24>();
    if (threadIdx.x == 0) gradients.Load(maps, saved);
  } else if (group == 1) {
    FewerRegisters<104>();
    gradients.WrittenRows();
  } else if (group == 2) {
    MoreRegisters<136>();
    gradients.Queries();
  } else {
    MoreRegisters<248>();
    gradients.Keys(1);
  }
#else
  __trap();
#endif
}

// Launch ------------------------------------------------------------------------------------------

// What kernels leave each other in scratch memory.
struct Scratch {
  Saved* saved;
  BF16* dstates;  // [B, chunks, H, V, K]  gradient of S^T after the chunk
  TensorView dv;  // [B, T, H, V]
  Segments segments;

  Scratch(Cutter& cut, const GatedDeltaBwd& op, const Backward<BF16>& f, const Segments& of)
      : saved(cut.Cut<Saved>(f.tiles())),
        dstates(cut.Cut<BF16>(int64_t{f.tiles()} * f.V * f.K)),
        dv(op.dv),
        segments(of) {
    if (f.add_dv) {
      dv = TensorView(cut.Cut<BF16>(int64_t{f.B} * f.T * f.H * f.V), DType::kBF16,
                      {f.B, f.T, f.H, f.V});
    }
    if (segments.count > 1) {
      const int64_t rows = int64_t{segments.count} * f.heads() * f.K;
      segments.a = cut.Cut<float>(rows * f.K);
      segments.c = cut.Cut<float>(rows * f.V);
    }
  }
};

template <class Plan, class Kernel, class... Args>
void LaunchBlocks(CudaStream& stream, Kernel kernel, dim3 blocks, int threads,
                  const Args&... args) {
  constexpr int kBytes = sizeof(typename Plan::Shared) + 1024;
  static_assert(kBytes <= 227 * 1024);
  CudaCheck(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
            "gated_delta");
  kernel<<<blocks, threads, kBytes, stream.handle()>>>(args...);
  CheckLaunch("gated_delta");
}

// dS^T between segments, from the last to the first: c(s) += c(s + 1) a(s), 16 rows per block.
constexpr int kJoinedRows = 16;
template <int kKeys>
__global__ void __launch_bounds__(kKeys) JoinSegments(const Segments segments, int heads, int V) {
  __shared__ float rows[kJoinedRows][kKeys];
  const int k = threadIdx.x, head = blockIdx.x, v = blockIdx.y * kJoinedRows;
  const auto c = [&](int segment, int row) -> float& {
    return segments.c[((int64_t{segment} * heads + head) * V + v + row) * kKeys + k];
  };
  float sum[kJoinedRows];
#pragma unroll
  for (int r = 0; r < kJoinedRows; ++r) sum[r] = c(segments.count - 1, r);
  for (int segment = segments.count - 2; segment > 0; --segment) {
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kJoinedRows; ++r) {
      rows[r][k] = sum[r];
      sum[r] = c(segment, r);
    }
    __syncthreads();
    const float* a = segments.a + (int64_t{segment} * heads + head) * kKeys * kKeys + k;
#pragma unroll 8
    for (int i = 0; i < kKeys; ++i) {
      const float x = a[i * kKeys];
#pragma unroll
      for (int r = 0; r < kJoinedRows; ++r) sum[r] += rows[r][i] * x;
    }
#pragma unroll
    for (int r = 0; r < kJoinedRows; ++r) c(segment, r) = sum[r];
  }
}

template <int kKeys, int kGroups>
void LaunchStateGradients(CudaStream& stream, const Backward<BF16>& f, const StateMaps& maps,
                          const Scratch& scratch) {
  using Plan = StatePlan<kKeys, kGroups>;
  constexpr int kValues = kGroups * kGroupRows;
  const int parts = CeilDiv(f.V, kValues);
  const Segments& segments = scratch.segments;
  if (segments.count > 1) {
    LaunchBlocks<Plan>(stream, HopperStateGradients<Plan, true>,
                       dim3(f.heads(), parts + CeilDiv(kKeys, kValues), segments.count - 1),
                       Plan::kThreads, f, maps, segments, scratch.saved, scratch.dstates);
    JoinSegments<kKeys><<<dim3(f.heads(), f.V / kJoinedRows), kKeys, 0, stream.handle()>>>(
        segments, f.heads(), f.V);
    CheckLaunch("gated_delta");
  }
  LaunchBlocks<Plan>(stream, HopperStateGradients<Plan, false>,
                     dim3(f.heads(), parts, segments.count), Plan::kThreads, f, maps, segments,
                     scratch.saved, scratch.dstates);
}

template <int kKeys>
void Launch(CudaStream& stream, const GatedDeltaBwd& op, int most_segments) {
  const Backward<BF16> f(op);
  const int groups = kKeys == 96 && f.V > 128 ? 3 : kKeys == 64 && f.V <= 64 ? 1 : 2;
  Segments segments{CeilDiv(f.chunks, most_segments)};
  segments.count = CeilDiv(f.chunks, segments.chunks);
  Cutter count;
  Scratch(count, op, f, segments);
  Cutter cut(stream.Scratch(count.bytes()));
  const Scratch scratch(cut, op, f, segments);

  const GatedDeltaFwd& fwd = op.fwd;
  const CUtensorMap q = TileMap(stream, fwd.q, kC, kKeyPanel<kKeys>),
                    k = TileMap(stream, fwd.k, kC, kKeyPanel<kKeys>),
                    dy = TileMap(stream, op.dy, kC), dv = TileMap(stream, scratch.dv, kC);
  const StateMaps state_maps = {q, k, dy, dv, TileMap(stream, op.dv, kC)};
  if constexpr (kKeys == 96) {
    if (groups == 3) LaunchStateGradients<kKeys, 3>(stream, f, state_maps, scratch);
  }
  if constexpr (kKeys == 64) {
    if (groups == 1) LaunchStateGradients<kKeys, 1>(stream, f, state_maps, scratch);
  }
  if (groups == 2) LaunchStateGradients<kKeys, 2>(stream, f, state_maps, scratch);

  // [B chunks, V, H, K]
  const auto states = [&](void* data, int64_t per_chunk, int64_t per_head) {
    return EncodeMap(stream, data, {kKeys, f.V, f.H, int64_t{f.B} * f.chunks},
                     {kKeys, per_head, per_chunk}, kC, kKeyPanel<kKeys>);
  };
  const int64_t size = int64_t{f.V} * kKeys;
  const GradientMaps maps = {q,
                             k,
                             TileMap(stream, fwd.v, kC),
                             dy,
                             dv,
                             states(fwd.states.data(), fwd.states.stride(1), fwd.states.stride(2)),
                             states(scratch.dstates, f.H * size, size)};
  using Plan = GradientPlan<kKeys>;
  LaunchBlocks<Plan>(stream, HopperKeyGradients<Plan>,
                     std::min(stream.multiprocessors(), f.tiles()), 4 * kGroup, f, maps,
                     scratch.saved);
}

}  // namespace

void RunHopper(CudaStream& stream, const GatedDeltaBwd& op, int segments) {
  switch (op.fwd.k.dim(3)) {
    case 48:
      return Launch<48>(stream, op, segments);
    case 64:
      return Launch<64>(stream, op, segments);
    case 96:
      return Launch<96>(stream, op, segments);
    default:
      return Launch<128>(stream, op, segments);
  }
}

}  // namespace weft::gated_delta
