// The forward on sm_90a, one kernel. A block has the value columns of one head, 64 per warpgroup,
// for all chunks of a segment of the sequence. Warpgroup 0 loads keys, queries and values by TMA
// and prepares chunk after chunk; the others hold S^T [64, K] in registers and take the left
// operand of every product from registers, the right one from shared memory. Where heads are few,
// the same kernel without outputs first finds the states between segments.

#include "kernels/gated_delta/gated_delta_hopper.cuh"

namespace weft::gated_delta {
namespace {

template <int kWidth, int kValueGroups>
struct ForwardPlan {
  static constexpr int kKeys = kWidth, kGroups = kValueGroups;
  static constexpr int kThreads = (1 + kGroups) * kGroup;
  static constexpr int kBlocksPerSM = kGroups == 1 ? 2 : 1;
  static constexpr int kStages = 3, kTiles = kGroups == 1 ? 1 : 2;
  // Of a preparing and of another thread.
  static constexpr int kFewer = kGroups == 1 ? 96 : 120;
  static constexpr int kMore = kGroups == 1 ? 160 : 192;
  // Of a stage, values are V and in the end Y.
  using Shared = SequenceMemory<kKeys, kGroups, kStages, kTiles>;
};

struct Maps {
  CUtensorMap q, k, v, y;
};

// A sequence in segments of `chunks` chunks, each of which a block of its own can go through once
// the state before it is known. With the transition Phi of a segment and its state after starting
// from zero,  S^T <- S^T Phi^T + carried^T.
struct Segments {
  int chunks, count;
  float* states;       // [B, H, count, V, K]  S^T before a segment
  float* transitions;  // [B, H, count, K, K]  Phi^T
};

// What one block does: some value columns of one head, or in their place the transition's columns.
struct Span {
  int b, h, v, width, groups, segment, first, end;
  bool transition = false;

  __device__ Span(const Sizes& s, const Segments& segments, int most_groups, bool carry)
      : b(blockIdx.y), h(blockIdx.x), width(s.V) {
    const int most = most_groups * kGroupRows, parts = (s.V + most - 1) / most;
    const int blocks = parts + carry;
    v = blockIdx.z % blocks * most;
    if (carry && blockIdx.z % blocks == parts) {
      transition = true;
      v = 0;
      width = s.K;
    }
    groups = min(most_groups, (width - v + kGroupRows - 1) / kGroupRows);
    segment = blockIdx.z / blocks;
    first = segment * segments.chunks;
    end = min(first + segments.chunks, s.chunks);
  }
  // The row of S^T or Phi^T of the first of this block's columns, before or after the segment.
  __device__ float* Row(const Sizes& s, const Segments& segments, int at) const {
    const int64_t index = (int64_t{b} * s.H + h) * segments.count + at;
    return (transition ? segments.transitions : segments.states) + (index * width + v) * s.K;
  }
};

template <class Plan, bool kCarry>
__device__ void LoadAndPrepare(const Forward<BF16>& f, const Maps& maps, const Span& span,
                               typename Plan::Shared& shared) {
  constexpr int kKeys = Plan::kKeys;
  Ring<Plan::kStages> loads, stages;
  Ring<Plan::kTiles> tiles;
  for (Prepared& tile : shared.tiles) {  // blocks above the diagonal stay zero
    for (int i = threadIdx.x; i < 3 * kSquare / 8; i += kGroup)
      reinterpret_cast<uint4*>(tile.x_high)[i] = uint4{};
  }
  const auto chunk = [&](int n) { return Chunk(f, span.b, n, span.h); };
  const auto load = [&](int n) {  // by one thread
    const Chunk c = chunk(n);
    auto& stage = shared.stages[loads.stage];
    Barrier& full = shared.full[loads.stage];
    Wait(shared.empty[loads.stage], loads.parity ^ 1);
    const int values = span.transition ? 0 : span.groups;
    ArriveAndExpect(full, (kCarry ? 1 : 2) * sizeof(stage.k) + values * sizeof(stage.values[0]));
    LoadKeys<kKeys>(stage.k, maps.k, c, full);
    if constexpr (!kCarry) LoadKeys<kKeys>(stage.q, maps.q, c, full);
    for (int g = 0; g < values; ++g) {
      LoadTile<kWidePanel>(stage.values[g], maps.v, kC, c.b, c.h, c.begin, full,
                           span.v + g * kWidePanel);
    }
    loads.Next();
  };
  // Warp 1 loads and warp 3 scans gates, both for the chunk after the one that is prepared.
  const int warp = __shfl_sync(~0u, threadIdx.x / kWarp, 0);
  GatePair gates;
  if (warp == 1 && threadIdx.x % kWarp == 0) load(span.first);
  if (warp == 3) {
    const HeadGates head = f.Head(span.h);
    shared.head = head;
    gates = GatePair(f, chunk(span.first));
    gates.Convert(f, head);
    ScanGates(chunk(span.first), gates, shared.stages[0].gates);
    if (span.first + 1 < span.end) gates = GatePair(f, chunk(span.first + 1));
  }
  Meet(1, kGroup);
  for (int n = span.first; n < span.end; ++n, tiles.Next()) {
    const auto& stage = shared.stages[stages.stage];
    Prepared& tile = shared.tiles[tiles.stage];
    Wait(shared.full[stages.stage], stages.parity);
    stages.Next();
    Wait(shared.taken[tiles.stage], tiles.parity ^ 1);
    Prepare<kKeys, !kCarry>(f.scale, f.erase, stage.k, stage.q, stage.gates, tile, shared.diagonal,
                            1, [&](int warp) {
                              if (n + 1 == span.end) return;
                              // Into the stage of chunk n - 2: nothing needs it any more when that
                              // of n is prepared.
                              if (warp == 1 && threadIdx.x % kWarp == 0) load(n + 1);
                              if (warp == 3) {
                                gates.Convert(f, shared.head);
                                ScanGates(chunk(n + 1), gates, shared.stages[stages.stage].gates);
                                if (n + 2 < span.end) gates = GatePair(f, chunk(n + 2));
                              }
                            });
    Release(shared.ready[tiles.stage]);
  }
}

// Where a thread reads and writes 16 x 16 blocks of values, [token][column], transposed.
__device__ inline int ValuesAt(int thread) {
  const int lane = thread % kWarp, warp = thread % kGroup / kWarp;
  return InPanel(lane % 8 + lane / 16 * 8, 16 * warp + lane / 8 % 2 * 8);
}

// One consuming warpgroup: 64 columns through all chunks.
template <class Plan, bool kCarry>
__device__ void Consume(const Forward<BF16>& f, const Maps& maps, const Segments& segments,
                        const Span& span, int group, typename Plan::Shared& shared) {
  constexpr int kKeys = Plan::kKeys;
  const int first_row = group * kGroupRows;  // of the block's
  float s[kKeys / 8][4], y[kC / 8][4];
  // f(element, v, k) for this thread's part of the state, v counted from span.v.
  const auto for_state = [&](auto&& f) {
    const int row = first_row + RowInGroup(threadIdx.x), column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) f(s[j][e], row + e / 2 * 8, 8 * j + column + e % 2);
    }
  };
  const int columns = span.width - span.v;
  if (!kCarry && segments.count > 1) {
    const float* from = span.Row(f, segments, span.segment);
    for_state([&](float& x, int v, int k) { x = v < columns ? from[v * kKeys + k] : 0; });
  } else if (span.transition) {
    for_state([&](float& x, int v, int k) { x = v == k; });
  } else {
    const bool given = f.initial && span.segment == 0;
    for_state([&](float& x, int v, int k) {
      x = given && v < columns ? f.initial(span.b, span.h, k)[span.v + v] : 0;
    });
    if (kCarry && span.segment == 0) {  // the final state may take the initial one's place
      float* to = span.Row(f, segments, 0);
      for_state([&](const float& x, int v, int k) {
        if (v < columns) to[v * kKeys + k] = x;
      });
    }
  }

  int stage_before = 0, tile_before = 0;  // of the chunk before
  // Y of chunk n, when the next one has begun, leaves by way of the memory of its values.
  const auto finish_y = [&](int n) {
    Release(shared.taken[tile_before]);
    const int thread = FreshThread();
    BF16 *out = shared.stages[stage_before].values[group], *block = out + ValuesAt(thread);
#pragma unroll
    for (int t = 0; t < kBlocks; ++t) {
      Fragment packed;
      PackLeft(y, t, packed.at);
      StoreMatrixTransposed(packed, block + 16 * t * kWidePanel);
    }
    FenceShared();
    Meet(2 + group, kGroup);
    if (thread % kGroup == 0) {
      StorePanel(maps.y, out, span.b, span.h, n * kC, span.v + group * kWidePanel);
      CommitStores();
    }
  };
  Ring<Plan::kStages> stages;
  Ring<Plan::kTiles> tiles;
  for (int n = span.first; n < span.end; ++n, stages.Next(), tiles.Next()) {
    auto& stage = shared.stages[stages.stage];
    const Prepared& tile = shared.tiles[tiles.stage];
    const Gates& gates = stage.gates;
    const int thread = FreshThread();
    // Of a sum's columns, which are tokens, the numbers for this thread's in block j.
    const auto tokens = [&](const float* x, int j) {
      return *reinterpret_cast<const float2*>(x + 8 * j + thread % 4 * 2);
    };
    uint32_t left[kKeys / 16][4];
    PackLeft(s, left);
    const auto read_state = [&](float(&sum)[kC / 8][4], const BF16* rows) {
      Begin(sum);
#pragma unroll
      for (int d = 0; d < kKeys; d += 16)
        Products<kC>::Step<false>(sum, left[d / 16], AlongKeys<kKeys>(rows, d), d > 0);
      Commit();
    };
    Wait(shared.full[stages.stage], stages.parity);
    float read[kC / 8][4];
    read_state(read, stage.k);
    if constexpr (!kCarry) {
      Finish<1>(y);
      if (n > span.first) finish_y(n - 1);
      read_state(y, stage.q);
      if (f.states) {
        const int row = first_row + RowInGroup(thread);
        BF16* to = f.states(span.b, n, span.h) + (span.v + row) * kKeys + NeighbourColumn();
#pragma unroll
        for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const auto [low, high] = Exchange(left[k][r], left[k][2 + r]);
            if (row + 8 * r < columns)
              *reinterpret_cast<uint2*>(to + 8 * r * kKeys + 16 * k) = {low, high};
          }
        }
      }
    }
    Wait(shared.ready[tiles.stage], tiles.parity);
    // With the widest keys registers are short: then no other product may run.
    Finish<(!kCarry && kKeys < 128)>(read);
    // R^T, the left operand, times beta: X is M without it.
    uint32_t rows[kC / 16][4];
#pragma unroll
    for (int t = 0; t < kBlocks; ++t) {
      Fragment v = {};
      if (!span.transition) {
        v = LoadMatrixTransposed(stage.values[group] + ValuesAt(thread) + 16 * t * kWidePanel);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int j = 2 * t + i / 2;
        const float2 start = tokens(gates.from_start, j), beta = tokens(gates.beta, j);
        const float2 value = UnpackPair(v.at[i]);
        const float* part = &read[j][i % 2 * 2];
        rows[t][i] = PackPair(beta.x * (value.x - f.erase * start.x * part[0]),
                              beta.y * (value.y - f.erase * start.y * part[1]));
      }
    }
    if constexpr (!kCarry) Finish<0>(y);
    // U^T = R^T X^T, 32 tokens at a time: the others above the diagonal add nothing.
    const auto write = [&](float(&u)[4][4], int half) {
      Begin(u);
#pragma unroll
      for (int t = 0; t < 2 + 2 * half; ++t) {
        Products<32>::Step<false>(u, rows[t], Square(tile.x_high, 32 * half, 16 * t), t > 0);
        Products<32>::Step<false>(u, rows[t], Square(tile.x_low, 32 * half, 16 * t), true);
      }
      Commit();
    };
    float u0[4][4], u1[4][4];
    write(u1, 1);
    write(u0, 0);
    const float whole = gates.Whole();
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[j][e] *= whole;
    }
    if constexpr (!kCarry) {
      if (thread % kGroup == 0 && n > span.first) {
        WaitForStores();
        Arrive(shared.empty[stage_before]);
      }
      __syncwarp();
      stage_before = stages.stage;
      tile_before = tiles.stage;
#pragma unroll
      for (int j = 0; j < kC / 8; ++j) {
        const float2 start = tokens(gates.from_start, j);
#pragma unroll
        for (int e = 0; e < 4; ++e) y[j][e] *= f.scale * (e % 2 ? start.y : start.x);
      }
    }
    uint32_t written[kC / 16][4];
    const auto pack = [&](const float(&u)[4][4], int half) {
#pragma unroll
      for (int t = 2 * half; t < 2 * half + 2; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 end = tokens(gates.to_end, 2 * t + i / 2);
          const float* part = &u[2 * (t - 2 * half) + i / 2][i % 2 * 2];
          written[t][i] = PackPair(part[0], part[1]);
          rows[t][i] = PackPair(end.x * part[0], end.y * part[1]);
        }
      }
    };
    Finish<1>(u1);
    pack(u1, 1);
    Finish<0>(u0);
    pack(u0, 0);
    Begin(s);
#pragma unroll
    for (int t = 0; t < kBlocks; ++t)
      Products<kKeys>::template Step<true>(s, rows[t], AlongTokens<kKeys>(stage.k, 16 * t), true);
    Commit();
    if constexpr (kCarry) {
      Release(shared.taken[tiles.stage]);
      Finish<0>(s);
      Release(shared.empty[stages.stage]);
    } else {
      Begin(y);
#pragma unroll
      for (int t = 0; t < kBlocks; ++t)
        Products<kC>::Step<false>(y, written[t], Square(tile.p, 0, 16 * t), true);
      Commit();
      Finish<1>(s);
    }
  }
  if constexpr (kCarry) {
    float* to = span.Row(f, segments, span.segment + !span.transition);
    for_state([&](const float& x, int v, int k) {
      if (v < columns) to[v * kKeys + k] = x;
    });
  } else {
    Finish<0>(y);
    finish_y(span.end - 1);
    if (f.final_state && span.end == f.chunks) {
      for_state([&](const float& x, int v, int k) {
        if (v < columns) f.final_state(span.b, span.h, k)[span.v + v] = x;
      });
    }
    if (threadIdx.x % kGroup == 0) WaitForStores();
  }
}

// The first chunk that the state after a segment depends on.
template <class Plan>
__device__ int FirstRemembered(const Forward<BF16>& f, const Span& span, float* sums) {
  constexpr int kWarps = Plan::kThreads / kWarp;
  const int warp = threadIdx.x / kWarp;
  float decay = 0;
  for (int last = span.end - 1; last >= span.first; last -= kWarps) {
    if (last - warp >= span.first) {
      const float sum = LogDecay(f, Chunk(f, span.b, last - warp, span.h));
      if (threadIdx.x % kWarp == 0) sums[warp] = sum;
    }
    __syncthreads();
    for (int i = 0; i < kWarps && last - i >= span.first; ++i) {
      decay += sums[i];
      if (decay < kForgotten) return last - i;
    }
    __syncthreads();
  }
  return span.first;
}

// With kCarry, not y but the state after each segment but the last, and their transitions.
template <class Plan, bool kCarry>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kBlocksPerSM)
    HopperForward(const __grid_constant__ Forward<BF16> f, const __grid_constant__ Maps maps,
                  const __grid_constant__ Segments segments) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  auto& shared = SharedMemory<typename Plan::Shared>();
  Span span(f, segments, Plan::kGroups, kCarry);
  if constexpr (kCarry) {
    if (span.transition && span.segment == 0) return;  // its state before is known
    const int first = FirstRemembered<Plan>(f, span, shared.diagonal[0]);
    if (span.transition && first > span.first) {
      float* to = span.Row(f, segments, span.segment);
      for (int i = threadIdx.x; i < f.K * f.K; i += Plan::kThreads) to[i] = 0;
      return;
    }
    span.first = first;
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < Plan::kStages; ++i) {
      Init(shared.full[i], 1);
      Init(shared.empty[i], span.groups * (kCarry ? kGroup / kWarp : 1));
    }
    for (int i = 0; i < Plan::kTiles; ++i) {
      Init(shared.ready[i], kGroup / kWarp);
      Init(shared.taken[i], span.groups * kGroup / kWarp);
    }
    FenceInit();
  }
  __syncthreads();
  const int group = GroupIndex() - 1;
  if (group < 0) {
    FewerRegisters<Plan::kFewer>();
    LoadAndPrepare<Plan, kCarry>(f, maps, span, shared);
  } else {
    MoreRegisters<Plan::kMore>();
    if (group < span.groups) Consume<Plan, kCarry>(f, maps, segments, span, group, shared);
  }
#else
  __trap();
#endif
}

// The state before every segment: segments.states has what one adds to the next. A block has 8
// value columns of one head; its threads share the sums among each other.
constexpr int kCombined = 8, kShares = 4;
template <int kKeys>
__global__ void __launch_bounds__(kKeys* kShares) CombineSegments(const Segments segments, int V) {
  __shared__ float state[kKeys][kCombined], sums[kShares][kCombined][kKeys];
  const int k = threadIdx.x % kKeys, share = threadIdx.x / kKeys, first = blockIdx.y * kCombined;
  const int64_t head = int64_t{blockIdx.x} * segments.count;
  for (int segment = 1; segment < segments.count; ++segment) {
    float sum[kCombined] = {};
    if (segment > 1) {
      const float* phi = segments.transitions + (head + segment - 1) * kKeys * kKeys;
#pragma unroll 8
      for (int i = 0; i < kKeys / kShares; ++i) {
        const int c = share * (kKeys / kShares) + i;
        const float by = phi[c * kKeys + k];
#pragma unroll
        for (int v = 0; v < kCombined; ++v) sum[v] += state[c][v] * by;
      }
    }
#pragma unroll
    for (int v = 0; v < kCombined; ++v) sums[share][v][k] = sum[v];
    __syncthreads();
    for (int v = share; v < kCombined && first + v < V; v += kShares) {
      float& at = segments.states[((head + segment) * V + first + v) * kKeys + k];
      float total = at;
#pragma unroll
      for (int i = 0; i < kShares; ++i) total += sums[i][v][k];
      at = state[k][v] = total;
    }
    __syncthreads();
  }
}

template <int kKeys, int kGroups>
void Launch(CudaStream& stream, const GatedDeltaFwd& op, int most_segments) {
  using Plan = ForwardPlan<kKeys, kGroups>;
  const Forward<BF16> f(op);
  const Maps maps = {TileMap(stream, op.q, kC, kKeyPanel<kKeys>),
                     TileMap(stream, op.k, kC, kKeyPanel<kKeys>), TileMap(stream, op.v, kC),
                     TileMap(stream, op.y, kC)};
  const int parts = CeilDiv(f.V, kGroups * kGroupRows), chunks = CeilDiv(f.chunks, most_segments);
  const int count = CeilDiv(f.chunks, chunks);
  Segments segments{chunks, count, nullptr, nullptr};
  const auto run = [&](auto kernel, int blocks) {
    LaunchBlocks<typename Plan::Shared>(stream, kernel, dim3(f.H, f.B, blocks), Plan::kThreads, f,
                                        maps, segments);
  };
  if (count > 1) {
    const auto cut = [&](Cutter memory) {
      segments.states = memory.Cut<float>(int64_t{f.heads()} * count * f.V * f.K);
      segments.transitions = memory.Cut<float>(int64_t{f.heads()} * count * f.K * f.K);
      return memory.bytes();
    };
    cut(Cutter(stream.Scratch(cut(Cutter()))));
    run(HopperForward<Plan, true>, (count - 1) * (parts + 1));
    if (count > 2) {
      CombineSegments<kKeys>
          <<<dim3(f.heads(), CeilDiv(f.V, kCombined)), kKeys * kShares, 0, stream.handle()>>>(
              segments, f.V);
      CheckLaunch("gated_delta");
    }
  }
  run(HopperForward<Plan, false>, count * parts);
}

}  // namespace

void RunHopper(CudaStream& stream, const GatedDeltaFwd& op, int segments) {
  const int64_t K = op.k.dim(3), V = op.v.dim(3);
  if (K == 48) return Launch<48, 2>(stream, op, segments);
  if (K == 64)
    return V <= 64 ? Launch<64, 1>(stream, op, segments) : Launch<64, 2>(stream, op, segments);
  if (K == 96) return Launch<96, 2>(stream, op, segments);
  Launch<128, 2>(stream, op, segments);
}

}  // namespace weft::gated_delta
