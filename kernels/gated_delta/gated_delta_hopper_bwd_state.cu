// The backward on sm_90a, its first kernels: the gates of all chunks; the gradient of the state from
// the last chunk to the first, and dV.

#include "kernels/gated_delta/gated_delta_hopper_bwd.cuh"

namespace weft::gated_delta {
namespace {

// c (+)= A B where of B only the blocks up to the diagonal are there.
__device__ void MultiplyLower(float (&c)[kC / 8][4], const uint32_t (&a)[kBlocks][4], const BF16* b,
                              bool add) {
  Products<64>::Step<true>(c, a[3], Square(b, 48, 0), add);
  Products<48>::Step<true>(c, a[2], Square(b, 32, 0), true);
  Products<32>::Step<true>(c, a[1], Square(b, 16, 0), true);
  Products<16>::Step<true>(c, a[0], Square(b, 0, 0), true);
}

template <int kN>
__device__ void ScaleTokens(float (&x)[kN][4], const float* by) {
#pragma unroll
  for (int j = 0; j < kN; ++j) {
    const float2 pair = Tokens(by, j);
    x[j][0] *= pair.x, x[j][1] *= pair.y, x[j][2] *= pair.x, x[j][3] *= pair.y;
  }
}

// Warpgroup 0 loads and prepares chunk after chunk, the last first. Each of the others holds 64
// columns of values of dS^T in registers and takes the left operands of all products from there.
template <int kWidth, int kValueGroups>
struct StatePlan {
  static constexpr int kKeys = kWidth, kGroups = kValueGroups;
  static constexpr int kThreads = (1 + kGroups) * kGroup;
  static constexpr int kStages = 3, kTiles = 2;
  // Of a preparing and of another thread.
  static constexpr int kFewer = kGroups == 3 ? 104 : 136, kMore = kGroups == 3 ? 136 : 184;
  // Of a stage, values are dY and in the end dV.
  using Shared = SequenceMemory<kKeys, kGroups, kStages, kTiles>;
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

// The gates of all chunks, one chunk per warp: the kernel below is as fast as its warpgroup 0, which
// has no registers for them.
constexpr int kScanWarps = 4;
__global__ void __launch_bounds__(kScanWarps* kWarp)
    HopperGates(const __grid_constant__ Backward<BF16> f, Saved* saved) {
  const int index = blockIdx.x * kScanWarps + threadIdx.x / kWarp;
  if (index >= f.tiles()) return;
  const Chunk c(f, index);
  GatePair gates(f, c);
  gates.Convert(f, f.Head(c.h));
  ScanGates(c, gates, saved[index].gates);
}

// By warpgroup 0. Warp 1 also loads the chunk that comes next and saves the tile of the one before
// for the last kernel.
template <class Plan, bool kMaps>
__device__ void LoadAndPrepare(const Backward<BF16>& f, const StateMaps& maps, const Span& span,
                               Saved* saved, typename Plan::Shared& shared) {
  constexpr int kKeys = Plan::kKeys;
  const int last = span.end - 1;
  const bool loads_here = threadIdx.x == kWarp;
  const auto chunk = [&](int n) { return Chunk(f, span.b, n, span.h); };
  Ring<Plan::kStages> loads, stages;
  Ring<Plan::kTiles> tiles, tile_before;
  const auto load = [&](int n) {
    const Chunk c = chunk(n);
    auto& stage = shared.stages[loads.stage];
    Barrier& full = shared.full[loads.stage];
    Wait(shared.empty[loads.stage], loads.parity ^ 1);
    ArriveAndExpect(full, sizeof(stage.gates) + sizeof(stage.k) + sizeof(stage.q) +
                              (span.identity ? 0 : sizeof(stage.values)));
    LoadBytes(&stage.gates, &saved[c.Index(f)].gates, sizeof(stage.gates), full);
    LoadKeys<kKeys>(stage.k, maps.k, c, full);
    LoadKeys<kKeys>(stage.q, maps.q, c, full);
    if (!span.identity) {
      LoadTile<Plan::kGroups * kWidePanel>(stage.values[0], maps.dy, kC, c.b, c.h, c.begin, full,
                                           span.values);
    }
    loads.Next();
  };
  const auto save = [&](int n) {
    Wait(shared.ready[tile_before.stage], tile_before.parity);
    StoreBytes(saved[chunk(n).Index(f)].x, shared.tiles[tile_before.stage].x_high,
               sizeof(Saved::x));
    CommitStores();
  };
  if (loads_here) load(last);
  for (int n = last; n >= span.first; --n, tiles.Next()) {
    auto& stage = shared.stages[stages.stage];
    Prepared& tile = shared.tiles[tiles.stage];
    Wait(shared.full[stages.stage], stages.parity);
    stages.Next();
    Wait(shared.taken[tiles.stage], tiles.parity ^ 1);
    Prepare<kKeys, true, Plan::kGroups == 3>(f.scale, f.erase, stage.k, stage.q, stage.gates, tile,
                                             shared.diagonal, 1, [&](int) {
                                               if (!loads_here) return;
                                               if (n > span.first) load(n - 1);
                                               if (span.saves && n < last) save(n + 1);
                                             });
    Release(shared.ready[tiles.stage]);
    if (loads_here && span.saves && n < last) {
      WaitForStores();
      Arrive(shared.taken[tile_before.stage]);
      tile_before.Next();
    }
    __syncwarp();
  }
  if (loads_here && span.saves) {
    save(span.first);
    WaitForStores();
  }
}

// How many chunks of a segment there are up to the one over whose end nothing reaches back to the
// beginning. 0: there is no such chunk.
template <class Plan>
__device__ int Remembered(const Backward<BF16>& f, const Span& span, float* sums) {
  constexpr int kWarps = Plan::kThreads / kWarp;
  const int warp = threadIdx.x / kWarp;
  float decay = 0;
  for (int n = span.first; n < span.end; n += kWarps) {
    if (n + warp < span.end) {
      const float sum = LogDecay(f, Chunk(f, span.b, n + warp, span.h));
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
  // Blocks behind the diagonal stay zero: the last kernel multiplies by whole tiles.
  for (auto& tile : shared.tiles) {
    for (int i = threadIdx.x; i < 2 * kSquare / 8; i += Plan::kThreads)
      reinterpret_cast<uint4*>(tile.x_high)[i] = {};
  }
  FenceShared();
  if (kMaps && span.identity) {
    for (auto& stage : shared.stages) {
      for (int i = threadIdx.x; i < Plan::kGroups * kSquare / 8; i += Plan::kThreads)
        reinterpret_cast<uint4*>(stage.values)[i] = {};
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
      BF16* values_tile = stage.values[group];
      // dU^T = to_end (dS^T K^T) + dY^T P
      uint32_t left[kKeys / 16][4], dy[kBlocks][4], du_left[kBlocks][4], minus_dv[kBlocks][4];
      float du[kC / 8][4], dv[kC / 8][4];
      PackLeft(ds, left);
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
      PackLeft(du, du_left);
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
void LaunchGroups(CudaStream& stream, const Backward<BF16>& f, const StateMaps& maps,
                  const Segments& segments, const Between& between) {
  using Plan = StatePlan<kKeys, kGroups>;
  using Shared = typename Plan::Shared;
  constexpr int kValues = kGroups * kGroupRows;
  const int parts = CeilDiv(f.V, kValues);
  if (segments.count > 1) {
    LaunchBlocks<Shared>(stream, HopperStateGradients<Plan, true>,
                         dim3(f.heads(), parts + CeilDiv(kKeys, kValues), segments.count - 1),
                         Plan::kThreads, f, maps, segments, between.saved, between.dstates);
    JoinSegments<kKeys><<<dim3(f.heads(), f.V / kJoinedRows), kKeys, 0, stream.handle()>>>(
        segments, f.heads(), f.V);
    CheckLaunch("gated_delta");
  }
  LaunchBlocks<Shared>(stream, HopperStateGradients<Plan, false>,
                       dim3(f.heads(), parts, segments.count), Plan::kThreads, f, maps, segments,
                       between.saved, between.dstates);
}

template <int kKeys>
void Launch(CudaStream& stream, const GatedDeltaBwd& op, const Segments& segments,
            const Between& between) {
  const Backward<BF16> f(op);
  const StateMaps maps = {TileMap(stream, op.fwd.q, kC, kKeyPanel<kKeys>),
                          TileMap(stream, op.fwd.k, kC, kKeyPanel<kKeys>),
                          TileMap(stream, op.dy, kC), TileMap(stream, between.dv, kC),
                          TileMap(stream, op.dv, kC)};
  if constexpr (kKeys == 96) {
    if (f.V > 128) return LaunchGroups<kKeys, 3>(stream, f, maps, segments, between);
  }
  if constexpr (kKeys == 64) {
    if (f.V <= 64) return LaunchGroups<kKeys, 1>(stream, f, maps, segments, between);
  }
  LaunchGroups<kKeys, 2>(stream, f, maps, segments, between);
}

}  // namespace

void RunHopper(CudaStream& stream, const GatedDeltaBwd& op, int most_segments) {
  const Backward<BF16> f(op);
  Segments segments{CeilDiv(f.chunks, most_segments)};
  segments.count = CeilDiv(f.chunks, segments.chunks);
  Between between{.dv = op.dv};
  const auto cut = [&](Cutter memory) {
    between.sums = GateSums(memory, f);
    between.saved = memory.Cut<Saved>(f.tiles());
    between.dstates = memory.Cut<BF16>(int64_t{f.tiles()} * f.V * f.K);
    if (f.add_dv) {
      between.dv = TensorView(memory.Cut<BF16>(int64_t{f.B} * f.T * f.H * f.V), DType::kBF16,
                              {f.B, f.T, f.H, f.V});
    }
    if (segments.count > 1) {
      const int64_t rows = int64_t{segments.count} * f.heads() * f.K;
      segments.a = memory.Cut<float>(rows * f.K);
      segments.c = memory.Cut<float>(rows * f.V);
    }
    return memory.bytes();
  };
  cut(Cutter(stream.Scratch(cut(Cutter()))));
  HopperGates<<<CeilDiv(f.tiles(), kScanWarps), kScanWarps * kWarp, 0, stream.handle()>>>(
      f, between.saved);
  CheckLaunch("gated_delta");
  switch (f.K) {
    case 48:
      Launch<48>(stream, op, segments, between);
      break;
    case 64:
      Launch<64>(stream, op, segments, between);
      break;
    case 96:
      Launch<96>(stream, op, segments, between);
      break;
    default:
      Launch<128>(stream, op, segments, between);
  }
  RunKeyGradients(stream, op, between);
  AddUp(stream, op, between.sums);
}

}  // namespace weft::gated_delta
