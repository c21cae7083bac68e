// Kernels for sm_90a (Hopper): bf16, K = V = 64 or 128. One thread loads tiles by TMA while
// warpgroups of 64 rows each multiply them by wgmma. As in attention_mma.cu the backward is one
// kernel for dk and dv and one for dq, and what a warpgroup has computed stays in its registers:
// the scores it makes as an accumulator it reads again as the left operand of the next product.
// Products run while weights are computed, those of the tile before among them (Shah et al. 2024,
// arXiv:2407.08608, 3.2). Blocks stay on their multiprocessor and take tile after tile, so that the
// end of one hides the beginning of the next.

#include "kernels/attention/attention_tile.cuh"
#include "kernels/base/hopper.cuh"

namespace weft {
namespace attention {
namespace {

using namespace hopper;

// Computes x >= 0, and what is before it in the code, here: otherwise the assembler moves the next
// wait ahead of work that is to overlap with what is waited for.
__device__ inline void Compute(float x) {
  if (x < 0) asm volatile("nanosleep.u32 0;");
}

// Registers move from the loading warpgroup to the others.
template <int kGroups>
__device__ inline void FewRegisters() {
  FewerRegisters<kGroups == 2 ? 24 : 32>();
}
template <int kGroups>
__device__ inline void ManyRegisters() {
  MoreRegisters<kGroups == 2 ? 240 : 160>();
}

// How the loading thread and the warpgroups keep step: rows of a tile, which stay while it is
// worked on, and the tiles that stream past them.
template <int kGroups, int kRowStages, int kStages>
struct Control {
  Barrier rows_full[kRowStages], rows_empty[kRowStages], full[kStages], empty[kStages];
  int tile[kRowStages];

  __device__ void Prepare() {
    if (threadIdx.x == 0) {
      for (int s = 0; s < kRowStages; ++s) Init(rows_full[s], 1), Init(rows_empty[s], kArrivals);
      for (int s = 0; s < kStages; ++s) Init(full[s], 1), Init(empty[s], kArrivals);
      FenceInit();
    }
    __syncthreads();
  }
  // The loading thread: load(tile, stage of its rows) for every tile that this block takes. Which
  // block takes a tile changes no bit.
  template <class F>
  __device__ void GiveTiles(int tiles, int* taken, F&& load) {
    Ring<kRowStages> rows;
    for (int now = blockIdx.x, next;; now = next, rows.Next()) {
      Wait(rows_empty[rows.stage], rows.parity ^ 1);
      tile[rows.stage] = now;
      if (now >= tiles) return Arrive(rows_full[rows.stage]);
      next = static_cast<int>(gridDim.x) + atomicAdd(taken, 1);
      load(now, rows.stage);
    }
  }
  // A warpgroup: work(tile, stage of its rows), which is to release rows_empty[stage].
  template <class F>
  __device__ void TakeTiles(int tiles, F&& work) {
    for (Ring<kRowStages> rows;; rows.Next()) {
      Wait(rows_full[rows.stage], rows.parity);
      const int now = tile[rows.stage];
      if (now >= tiles) return;
      work(now, rows.stage);
    }
  }

 private:
  static constexpr int kArrivals = kGroups * kGroup / kWarp;
};
// Warpgroups take turns in starting products: while those of one run, the others compute weights.
template <int kGroups>
struct Turns {
  int group;

  __device__ explicit Turns(int of_group) : group(of_group) {
    if (group == kGroups - 1) Pass();
  }
  __device__ void Await() const {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(2 * kGroup) : "memory");
  }
  __device__ void Pass() const {
    const int next = group == kGroups - 1 ? 0 : group + 1;
    asm volatile("bar.arrive %0, %1;" ::"r"(1 + next), "n"(2 * kGroup) : "memory");
  }
};

// Of the two query rows of this lane, and of all 64 of its warpgroup.
struct Bounds {
  int first[2], last[2], inner_first, inner_last;

  __device__ Bounds(const Visible& visible, int group_row, int row, int last_query) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = min(row + 8 * r, last_query);
      first[r] = visible.First(i);
      last[r] = visible.Last(i);
    }
    inner_first = visible.First(min(group_row + kGroupRows - 1, last_query));
    inner_last = visible.Last(min(group_row, last_query));
  }
  template <int kN>
  __device__ void Mask(float (&s)[kN / 8][4], int key) const {
    if (key < inner_first || key + kN - 1 > inner_last)
      MaskKeys<kN>(s, key + threadIdx.x % 4 * 2, first, last);
  }
};

// Forward ---------------------------------------------------------------------------------------

template <int kWidth>
struct ForwardPlan {
  static constexpr int kD = kWidth, kGroups = kD == 64 ? 3 : 2, kRows = kGroups * kGroupRows;
  static constexpr int kN = 128, kRowStages = 2, kStages = 4;
  struct Shared {
    BF16 q[kRowStages][kRows * kD], stream[kStages][kN * kD];
    Control<kGroups, kRowStages, kStages> control;
  };
};

template <class Plan>
__global__ void __launch_bounds__((Plan::kGroups + 1) * kGroup, 1)
    HopperForward(const __grid_constant__ Forward<BF16> p, const __grid_constant__ Order order,
                  int* taken, const __grid_constant__ CUtensorMap q_map,
                  const __grid_constant__ CUtensorMap k_map,
                  const __grid_constant__ CUtensorMap v_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kD = Plan::kD, kN = Plan::kN, kRows = Plan::kRows, kStages = Plan::kStages;
  auto& shared = SharedMemory<typename Plan::Shared>();
  auto& control = shared.control;
  control.Prepare();
  const int group = GroupIndex() - 1;
  Ring<kStages> ring;  // of keys and values in turn, the keys one tile ahead
  if (group < 0) {
    FewRegisters<Plan::kGroups>();
    if (threadIdx.x == 0) {
      control.GiveTiles(order.blocks(), taken, [&](int index, int stage) {
        const QueryTile at(p, order, index, kRows, kN);
        ArriveAndExpect(control.rows_full[stage], kRows * kD * sizeof(BF16));
        LoadTile<kD>(shared.q[stage], q_map, kRows, at.b, at.h, at.begin, control.rows_full[stage]);
        const auto load = [&](const CUtensorMap& map, int key) {
          Barrier& full = control.full[ring.stage];
          Wait(control.empty[ring.stage], ring.parity ^ 1);
          ArriveAndExpect(full, kN * kD * sizeof(BF16));
          LoadTile<kD>(shared.stream[ring.stage], map, kN, at.b, at.h / p.group, key, full);
          ring.Next();
        };
        int key = at.keys.LastTile(kN);
        load(k_map, key);
        for (; key > at.keys.begin; key -= kN) {
          load(k_map, key - kN);
          load(v_map, key);
        }
        load(v_map, key);
      });
    }
  } else {
    ManyRegisters<Plan::kGroups>();
    const float scale2 = p.scale * kLog2E;
    const Turns<Plan::kGroups> turns(group);
    control.TakeTiles(order.blocks(), [&](int index, int stage) {
      const QueryTile at(p, order, index, kRows, kN);
      const int group_row = at.begin + group * kGroupRows, row = group_row + RowInGroup();
      const Bounds bounds(at.visible, group_row, row, p.Tq - 1);
      const BF16* q = shared.q[stage] + group * kGroupRows * kWidePanel;
      float y[kD / 8][4] = {}, s[kN / 8][4], shrink[2];
      uint32_t weights[kN / 16][4];
      Softmax softmax;

      int key = at.keys.LastTile(kN);
      Wait(control.full[ring.stage], ring.parity);
      Begin(s);
      Dot<kD, kN, kRows>(s, q, shared.stream[ring.stage]);
      Finish<0>(s);
      ReleaseProducts(control.empty[ring.stage]);
      ring.Next();
      bounds.Mask<kN>(s, key);
      softmax.Add<kN>(s, scale2, shrink);
      PackLeft(s, weights);
      while (key > at.keys.begin) {
        key -= kN;
        Barrier& k_empty = control.empty[ring.stage];
        Wait(control.full[ring.stage], ring.parity);
        turns.Await();
        Begin(s, y);
        Dot<kD, kN, kRows>(s, q, shared.stream[ring.stage]);
        ring.Next();
        Wait(control.full[ring.stage], ring.parity);
        Begin();
        Times<kD, kN>(y, weights, shared.stream[ring.stage]);
        turns.Pass();
        Finish<1>(s);
        ReleaseProducts(k_empty);
        bounds.Mask<kN>(s, key);
        softmax.Add<kN>(s, scale2, shrink);
        Compute(softmax.sum[0] + softmax.sum[1]);
        Finish<0>(y);
        ReleaseProducts(control.empty[ring.stage]);
        ring.Next();
        RescaleRows<kD>(y, shrink);
        PackLeft(s, weights);
      }
      ReleaseProducts(control.rows_empty[stage]);
      Wait(control.full[ring.stage], ring.parity);
      Begin(y);
      Times<kD, kN>(y, weights, shared.stream[ring.stage]);
      float mean[2], lse[2];
      softmax.Finish(p.scale, mean, lse);
      Finish<0>(y);
      ReleaseProducts(control.empty[ring.stage]);
      ring.Next();
      ScaleRows<kD>(y, mean);
      StoreRows<kD>(y, p.y.Head(at.b, at.h), p.y.time, row, p.Tq, kD, false);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int i = row + 8 * r;
        if (threadIdx.x % 4 == 0 && i < p.Tq) p.Lse(at.b, at.h)[i] = lse[r];
      }
    });
  }
#else
  __trap();
#endif
}

struct BackwardArgs {
  Backward<BF16> p;
  Order order;
  int* taken;
  CUtensorMap q_map, dy_map, k_map, v_map;
};

// Backward for dq -------------------------------------------------------------------------------

template <int kWidth>
struct QueriesPlan {
  static constexpr int kD = kWidth, kGroups = 2, kRows = kGroups * kGroupRows;
  static constexpr int kN = 128, kRowStages = kD == 64 ? 2 : 1, kStages = 2;
  struct Shared {
    BF16 q[kRowStages][kRows * kD], dy[kRowStages][kRows * kD];
    BF16 k[kStages][kN * kD], v[kStages][kN * kD];
    Control<kGroups, kRowStages, kStages> control;
  };
};

template <class Plan>
__global__ void __launch_bounds__((Plan::kGroups + 1) * kGroup, 1)
    HopperQueries(const __grid_constant__ BackwardArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const Backward<BF16>& p = a.p;
  const Order& order = a.order;
  constexpr int kD = Plan::kD, kN = Plan::kN, kRows = Plan::kRows, kStages = Plan::kStages;
  auto& shared = SharedMemory<typename Plan::Shared>();
  auto& control = shared.control;
  control.Prepare();
  const int group = GroupIndex() - 1;
  Ring<kStages> ring;
  if (group < 0) {
    FewRegisters<Plan::kGroups>();
    if (threadIdx.x == 0) {
      control.GiveTiles(order.blocks(), a.taken, [&](int index, int stage) {
        const QueryTile at(p, order, index, kRows, kN);
        Barrier& rows_full = control.rows_full[stage];
        ArriveAndExpect(rows_full, 2 * kRows * kD * sizeof(BF16));
        LoadTile<kD>(shared.q[stage], a.q_map, kRows, at.b, at.h, at.begin, rows_full);
        LoadTile<kD>(shared.dy[stage], a.dy_map, kRows, at.b, at.h, at.begin, rows_full);
        for (int key = at.keys.begin; key < at.keys.end; key += kN, ring.Next()) {
          Barrier& full = control.full[ring.stage];
          Wait(control.empty[ring.stage], ring.parity ^ 1);
          ArriveAndExpect(full, 2 * kN * kD * sizeof(BF16));
          LoadTile<kD>(shared.k[ring.stage], a.k_map, kN, at.b, at.h / p.group, key, full);
          LoadTile<kD>(shared.v[ring.stage], a.v_map, kN, at.b, at.h / p.group, key, full);
        }
      });
    }
  } else {
    ManyRegisters<Plan::kGroups>();
    const float scale2 = p.scale * kLog2E;
    const Turns<Plan::kGroups> turns(group);
    control.TakeTiles(order.blocks(), [&](int index, int stage) {
      const QueryTile at(p, order, index, kRows, kN);
      const int group_row = at.begin + group * kGroupRows, row = group_row + RowInGroup();
      const Bounds bounds(at.visible, group_row, row, p.Tq - 1);
      const BF16* q = shared.q[stage] + group * kGroupRows * kWidePanel;
      const BF16* dy = shared.dy[stage] + group * kGroupRows * kWidePanel;
      float dq[kD / 8][4] = {}, s[kN / 8][4], ds[kN / 8][4], shift[2], delta[2];
      uint32_t left[kN / 16][4];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int i = min(row + 8 * r, p.Tq - 1);
        shift[r] = scale2 * p.Shift(at.b, at.h)[i];
        delta[r] = p.Delta(at.b, at.h)[i];
      }
      Barrier* before = nullptr;  // of the tile whose last product may still run
      Begin(dq);
      for (int key = at.keys.begin; key < at.keys.end; key += kN, ring.Next()) {
        Wait(control.full[ring.stage], ring.parity);
        turns.Await();
        Begin(s);
        Dot<kD, kN, kRows>(s, q, shared.k[ring.stage]);
        Finish<1>();
        if (before) ReleaseProducts(*before);
        before = &control.empty[ring.stage];
        Begin(ds);
        Dot<kD, kN, kRows>(ds, dy, shared.v[ring.stage]);
        turns.Pass();
        Finish<1>(s);
        bounds.Mask<kN>(s, key);
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) s[j][e] = FastExp2(fmaf(s[j][e], scale2, -shift[e / 2]));
        }
        Compute(s[kN / 8 - 1][3]);
        Finish<0>(ds);
        if (key + kN >= at.keys.end) ReleaseProducts(control.rows_empty[stage]);
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) ds[j][e] = s[j][e] * (ds[j][e] - delta[e / 2]);
        }
        PackLeft(ds, left);
        Begin();
        Times<kD, kN>(dq, left, shared.k[ring.stage]);
      }
      Finish<0>(dq);
      ReleaseProducts(*before);
      const float scale[2] = {p.scale, p.scale};
      ScaleRows<kD>(dq, scale);
      StoreRows<kD>(dq, p.dq.Head(at.b, at.h), p.dq.time, row, p.Tq, kD, p.add_dq);
    });
  }
#else
  __trap();
#endif
}

// Backward for dk and dv: scores are transposed, rows are keys ------------------------------------

template <int kWidth>
struct KeysPlan {
  static constexpr int kD = kWidth, kGroups = 2, kRows = kGroups * kGroupRows;
  static constexpr int kN = 64, kRowStages = 2, kStages = kD == 64 ? 4 : 2;
  struct Shared {
    BF16 k[kRowStages][kRows * kD], v[kRowStages][kRows * kD];
    BF16 q[kStages][kN * kD], dy[kStages][kN * kD];
    alignas(16) float shift[kStages][kN], delta[kStages][kN];
    Control<kGroups, kRowStages, kStages> control;
  };
};

// A tile of keys of one head, the first keys first: the most queries see them.
struct KeyTile {
  int b, g, begin, first, last;  // queries that see them

  __device__ KeyTile(const Backward<BF16>& p, const Order& order, int index, int rows,
                     int query_tile) {
    int tile, head;
    order.At(index, tile, head);
    b = head / p.Hkv;
    g = head % p.Hkv;
    begin = tile * rows;
    first = max(0, begin - (p.Tk - p.Tq)) / query_tile * query_tile;
    last = p.prepared.last_query[b * order.tiles + tile];
  }
};

template <class Plan>
__global__ void __launch_bounds__((Plan::kGroups + 1) * kGroup, 1)
    HopperKeys(const __grid_constant__ BackwardArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const Backward<BF16>& p = a.p;
  const Order& order = a.order;
  constexpr int kD = Plan::kD, kN = Plan::kN, kRows = Plan::kRows, kStages = Plan::kStages;
  auto& shared = SharedMemory<typename Plan::Shared>();
  auto& control = shared.control;
  control.Prepare();
  const int group = GroupIndex() - 1;
  Ring<kStages> ring;
  if (group < 0) {
    FewRegisters<Plan::kGroups>();
    if (threadIdx.x == 0) {
      control.GiveTiles(order.blocks(), a.taken, [&](int index, int stage) {
        const KeyTile at(p, order, index, kRows, kN);
        Barrier& rows_full = control.rows_full[stage];
        ArriveAndExpect(rows_full, 2 * kRows * kD * sizeof(BF16));
        LoadTile<kD>(shared.k[stage], a.k_map, kRows, at.b, at.g, at.begin, rows_full);
        LoadTile<kD>(shared.v[stage], a.v_map, kRows, at.b, at.g, at.begin, rows_full);
        for (int h = at.g * p.group; h < (at.g + 1) * p.group; ++h) {
          for (int i = at.first; i <= at.last; i += kN, ring.Next()) {
            const int to = ring.stage;
            Barrier& full = control.full[to];
            Wait(control.empty[to], ring.parity ^ 1);
            ArriveAndExpect(full, 2 * kN * (kD * sizeof(BF16) + sizeof(float)));
            LoadTile<kD>(shared.q[to], a.q_map, kN, at.b, h, i, full);
            LoadTile<kD>(shared.dy[to], a.dy_map, kN, at.b, h, i, full);
            LoadBytes(shared.shift[to], p.Shift(at.b, h) + i, kN * sizeof(float), full);
            LoadBytes(shared.delta[to], p.Delta(at.b, h) + i, kN * sizeof(float), full);
          }
        }
      });
    }
  } else {
    ManyRegisters<Plan::kGroups>();
    const float scale2 = p.scale * kLog2E;
    const Turns<Plan::kGroups> turns(group);
    const int column = threadIdx.x % 4 * 2;
    control.TakeTiles(order.blocks(), [&](int index, int rows_stage) {
      const KeyTile at(p, order, index, kRows, kN);
      const Visible visible = p.Of(at.b);
      const int group_row = at.begin + group * kGroupRows, row = group_row + RowInGroup();
      const BF16* k = shared.k[rows_stage] + group * kGroupRows * kWidePanel;
      const BF16* v = shared.v[rows_stage] + group * kGroupRows * kWidePanel;
      float dk[kD / 8][4] = {}, dv[kD / 8][4] = {}, s[kN / 8][4], ds[kN / 8][4];
      uint32_t weights[kN / 16][4], left[kN / 16][4];
      Barrier* before = nullptr;  // of the tile whose last product may still run
      Begin(dk, dv);
      const int steps = at.last < at.first ? 0 : p.group * ((at.last - at.first) / kN + 1);
      for (int step = 0, query = at.first; step < steps; ++step, ring.Next()) {
        const int stage = ring.stage;
        const bool whole = group_row + kGroupRows - 1 <= visible.Last(query) &&
                           group_row >= visible.First(min(query + kN, p.Tq) - 1);
        Wait(control.full[stage], ring.parity);
        StartAtMinus<kN>(shared.shift[stage] + column, s);
        turns.Await();
        Begin(s);
        Dot<kD, kN, kRows, true>(s, k, shared.q[stage]);
        Finish<1>();
        if (before) Release(*before);
        before = &control.empty[stage];
        StartAtMinus<kN>(shared.delta[stage] + column, ds);
        Begin(ds);
        Dot<kD, kN, kRows, true>(ds, v, shared.dy[stage]);
        turns.Pass();
        Finish<1>(s);
        if (!whole) MaskQueries<kN>(s, row, query + column, p.Tq - 1, visible);
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) s[j][e] = FastExp2(scale2 * s[j][e]);
        }
        PackLeft(s, weights);
        Begin();
        Times<kD, kN>(dv, weights, shared.dy[stage]);
        Finish<1>(ds);
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) ds[j][e] *= s[j][e];
        }
        PackLeft(ds, left);
        Begin();
        Times<kD, kN>(dk, left, shared.q[stage]);
        query = query + kN > at.last ? at.first : query + kN;
      }
      Finish<0>(dk, dv);
      if (before) Release(*before);
      Release(control.rows_empty[rows_stage]);
      const float scale[2] = {p.scale, p.scale};
      ScaleRows<kD>(dk, scale);
      StoreRows<kD>(dk, p.dk.Head(at.b, at.g), p.dk.time, row, p.Tk, kD, p.add_dk);
      StoreRows<kD>(dv, p.dv.Head(at.b, at.g), p.dv.time, row, p.Tk, kD, p.add_dv);
    });
  }
#else
  __trap();
#endif
}

// Launch ----------------------------------------------------------------------------------------

template <class Plan, class Kernel, class... Args>
void Run(CudaStream& stream, Kernel kernel, const Order& order, const Args&... args) {
  constexpr int kBytes = sizeof(typename Plan::Shared) + 1024;
  CudaCheck(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
            "attention");
  const int blocks = std::min(stream.multiprocessors(), order.blocks());
  kernel<<<blocks, (Plan::kGroups + 1) * kGroup, kBytes, stream.handle()>>>(args...);
  CheckLaunch("attention");
}

// Of a key-value head, and of the query heads that share it.
int64_t KeyBytes(const Sizes& p) { return int64_t{2} * p.Tk * (p.K + p.V); }
int64_t QueryBytes(const Sizes& p) { return int64_t{2} * p.Tq * (p.K + p.V) * p.group; }

template <int kD>
void Launch(CudaStream& stream, const AttentionFwd& op) {
  using Plan = ForwardPlan<kD>;
  const Forward<BF16> p(op);
  const Order order(CeilDiv(p.Tq, Plan::kRows), p.B * p.H, KeyBytes(p) / p.group);
  auto* taken = static_cast<int*>(stream.Scratch(sizeof(int)));
  stream.Zero(taken, sizeof(int));
  Run<Plan>(stream, HopperForward<Plan>, order, p, order, taken, TileMap(stream, op.q, Plan::kRows),
            TileMap(stream, op.k, Plan::kN), TileMap(stream, op.v, Plan::kN));
}

template <int kD>
void Launch(CudaStream& stream, const AttentionBwd& op) {
  using Keys = KeysPlan<kD>;
  using Queries = QueriesPlan<kD>;
  const AttentionFwd& f = op.fwd;
  const Backward<BF16> p(op, PrepareBackward(stream, op, Keys::kRows));
  const Order keys(CeilDiv(p.Tk, Keys::kRows), p.B * p.Hkv, QueryBytes(p));
  const Order queries(CeilDiv(p.Tq, Queries::kRows), p.B * p.H, KeyBytes(p) / p.group);
  const auto args = [&](const Order& order, int* taken, int query_tile, int key_tile) {
    return BackwardArgs{p,
                        order,
                        taken,
                        TileMap(stream, f.q, query_tile),
                        TileMap(stream, op.dy, query_tile),
                        TileMap(stream, f.k, key_tile),
                        TileMap(stream, f.v, key_tile)};
  };
  Run<Keys>(stream, HopperKeys<Keys>, keys, args(keys, p.prepared.taken, Keys::kN, Keys::kRows));
  Run<Queries>(stream, HopperQueries<Queries>, queries,
               args(queries, p.prepared.taken + 1, Queries::kRows, Queries::kN));
}

template <class Op>
bool Choose(CudaStream& stream, const Op& op, const AttentionFwd& f) {
  const int64_t K = f.k.dim(3);
  if (f.q.dtype() != DType::kBF16 || stream.capability() != 90 || K != f.v.dim(3) ||
      (K != 64 && K != 128) || f.scale <= 0 || !Aligned(op)) {
    return false;
  }
  K == 64 ? Launch<64>(stream, op) : Launch<128>(stream, op);
  return true;
}

}  // namespace
}  // namespace attention

bool HopperAttention(CudaStream& stream, const AttentionFwd& op) {
  return attention::Choose(stream, op, op);
}
bool HopperAttention(CudaStream& stream, const AttentionBwd& op) {
  return attention::Choose(stream, op, op.fwd);
}

}  // namespace weft
