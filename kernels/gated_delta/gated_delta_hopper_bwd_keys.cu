// The backward on sm_90a, the last kernel: gradients of queries, keys and gates. A block has one
// chunk of one head after another; one thread loads, three warpgroups have a role each.

#include "kernels/gated_delta/gated_delta_hopper_bwd.cuh"

namespace weft::gated_delta {
namespace {

__device__ void StoreDirect(const uint32_t (&x)[4], BF16* panel, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  StoreMatrix({x[0], x[1], x[2], x[3]}, panel + InPanel(row + lane % 16, column + lane / 16 * 8));
}
template <int kKeys>
__device__ int InKeys(int row, int column) {
  constexpr int kPanel = kKeyPanel<kKeys>;
  return column / kPanel * kPanel * kC + InPanel<kPanel>(row, column % kPanel);
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
                              int buffer, const GatePair& given, const GateSums& sums) {
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
  const float dlog_a[2] = {sum, !last && segment[1] == next ? d[1] + following : d[1]};
  const bool boundary[2] = {segment[0] != (lane > 0 ? before : 0), segment[1] != segment[0]};
  const float dbeta[2] = {u_dv.x / beta.x / beta.x, u_dv.y / beta.y / beta.y};
  float2 total = {};
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (i + e >= c.count) break;
    const float2 more = f.PutGates(c.b, c.begin + i + e, c.h, boundary[e] ? 0 : dlog_a[e], dbeta[e],
                                   given.GateA(e), given.GateB(e));
    total.x += more.x, total.y += more.y;
  }
  if (!f.gate_a) return;
  total = {WarpSum(total.x), WarpSum(total.y)};
  if (lane == 0) sums.Put(c.Index(f), total);
}

// Blocks go through chunks of heads, slice by slice of 64 values. Loads run ahead of the products
// by all slices there is memory for, and by the next chunk's queries and keys.
template <class Plan>
struct Gradients {
  static constexpr int kKeys = Plan::kKeys;
  const Backward<BF16>& f;
  const GateSums& sums;
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
      PackLeft(x, dp);
      ScaleRows(dq, f.scale * gates.from_start[row], f.scale * gates.from_start[row + 8]);
      Begin(dq);
#pragma unroll
      for (int t = 0; t < kBlocks; ++t)
        Multiply<kKeys, true>(dq, dp[t], AlongTokens<kKeys>(s.k[buffer], 16 * t));
      Commit();
      Finish<0>(dq);
      const Chunk c(f, index);
      GatePair given;
      if (warp == 0 && f.gate_a) given = GatePair(f, c);
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
      Arrive(s.dots[buffer]);
      if (warp == 0) {
        Wait(s.dots[buffer], buffers.parity);
        GateGradients(f, c, s, buffer, given, sums);
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
      PackLeft(x, dp);
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
      Arrive(s.dots[buffer]);
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
                       const __grid_constant__ GradientMaps maps,
                       const __grid_constant__ GateSums sums, const Saved* saved) {
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
      Init(s.dots[i], 2 * kGroup);
    }
    Init(s.x_full, 1);
    Init(s.x_empty, kWarps);
    FenceInit();
  }
  __syncthreads();
  Gradients<Plan> gradients{f, sums, s};
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

template <int kKeys>
void Launch(CudaStream& stream, const GatedDeltaBwd& op, const Between& between) {
  using Plan = GradientPlan<kKeys>;
  const Backward<BF16> f(op);
  const GatedDeltaFwd& fwd = op.fwd;
  // [B chunks, V, H, K]
  const auto states = [&](void* data, int64_t per_chunk, int64_t per_head) {
    return EncodeMap(stream, data, {kKeys, f.V, f.H, int64_t{f.B} * f.chunks},
                     {kKeys, per_head, per_chunk}, kC, kKeyPanel<kKeys>);
  };
  const int64_t size = int64_t{f.V} * kKeys;
  const GradientMaps maps = {TileMap(stream, fwd.q, kC, kKeyPanel<kKeys>),
                             TileMap(stream, fwd.k, kC, kKeyPanel<kKeys>),
                             TileMap(stream, fwd.v, kC),
                             TileMap(stream, op.dy, kC),
                             TileMap(stream, between.dv, kC),
                             states(fwd.states.data(), fwd.states.stride(1), fwd.states.stride(2)),
                             states(between.dstates, f.H * size, size)};
  LaunchBlocks<typename Plan::Shared>(stream, HopperKeyGradients<Plan>,
                                      std::min(stream.multiprocessors(), f.tiles()), 4 * kGroup, f,
                                      maps, between.sums, between.saved);
}

}  // namespace

void RunKeyGradients(CudaStream& stream, const GatedDeltaBwd& op, const Between& between) {
  switch (op.fwd.k.dim(3)) {
    case 48:
      return Launch<48>(stream, op, between);
    case 64:
      return Launch<64>(stream, op, between);
    case 96:
      return Launch<96>(stream, op, between);
    default:
      return Launch<128>(stream, op, between);
  }
}

}  // namespace weft::gated_delta
