// Tensor-core kernels for bf16 from sm_80 on: mma.sync, K and V multiples of 8 up to 256 (widths in
// between are filled with zeros). A block is 4 warps of 16 rows. Rows stay in shared memory; what
// streams past them is loaded one tile ahead. The backward is two kernels, one for dk and dv and
// one for dq, so that every sum has one owner and a fixed order; both compute the scores again.

#include "kernels/attention/attention_tile.cuh"

namespace weft {
namespace attention {
namespace {

constexpr int kThreads = 128, kRows = 64;
template <int kD>
constexpr int kStream = kD <= 128 ? 64 : 32;  // rows of a tile that streams past
template <int kD>
constexpr int kStride = kD + 8;  // of a row in shared memory: no bank conflicts in ldmatrix
// Accumulators of dk and dv do not fit together beyond this.
template <int kD>
constexpr bool kTogether = kD <= 128;

__device__ inline void CopyAsync(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(to)), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void Commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void WaitAndSync() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
  __syncthreads();
}

// kN rows of a head from row `begin` on; zeros behind row `end` and behind `width`.
template <int kN, int kD>
__device__ void LoadRows(BF16* to, const BF16* head, int64_t stride, int begin, int end,
                         int width) {
  constexpr int kPacks = kD / 8;
#pragma unroll
  for (int i = threadIdx.x; i < kN * kPacks; i += kThreads) {
    const int row = i / kPacks, column = i % kPacks * 8;
    const bool there = begin + row < end && column < width;
    CopyAsync(to + row * kStride<kD> + column,
              there ? head + (begin + row) * stride + column : head, there);
  }
}

template <bool kTransposed>
__device__ inline void LoadMatrices(uint32_t (&x)[4], const BF16* row) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(SharedAddress(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(SharedAddress(row))
                 : "memory");
  }
}

__device__ inline void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// s += A B^T of this warp's 16 rows of A and kN rows of B.
template <int kN, int kD>
__device__ inline void Dot(const BF16* a, const BF16* b, float (&s)[kN / 8][4]) {
  const int lane = threadIdx.x % kWarp;
  a += (lane % 16) * kStride<kD> + lane / 16 * 8;
  b += (lane % 8 + lane / 16 * 8) * kStride<kD> + lane / 8 % 2 * 8;
#pragma unroll
  for (int d = 0; d < kD; d += 16) {
    uint32_t left[4];
    LoadMatrices<false>(left, a + d);
#pragma unroll
    for (int j = 0; j < kN / 8; j += 2) {
      uint32_t right[4];
      LoadMatrices<false>(right, b + 8 * j * kStride<kD> + d);
      MultiplyAdd(s[j], left, right[0], right[1]);
      MultiplyAdd(s[j + 1], left, right[2], right[3]);
    }
  }
}

// sum += P R, P 16 x kN in registers, R kN rows.
template <int kN, int kD>
__device__ inline void Times(const float (&p)[kN / 8][4], const BF16* r, float (&sum)[kD / 8][4]) {
  const int lane = threadIdx.x % kWarp;
  r += (lane % 16) * kStride<kD> + lane / 16 * 8;
  uint32_t left[kN / 16][4];
  PackLeft(p, left);
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) {
#pragma unroll
    for (int j = 0; j < kD / 8; j += 2) {
      uint32_t right[4];
      LoadMatrices<true>(right, r + 16 * k * kStride<kD> + 8 * j);
      MultiplyAdd(sum[j], left[k], right[0], right[1]);
      MultiplyAdd(sum[j + 1], left[k], right[2], right[3]);
    }
  }
}

struct Lane {
  int row = threadIdx.x / kWarp * 16 + threadIdx.x % kWarp / 4, column = threadIdx.x % 4 * 2;
};

// Of the two query rows of this lane.
struct Bounds {
  int first[2], last[2];
  __device__ Bounds(const Visible& visible, int query, int last_query) {
    for (int r = 0; r < 2; ++r) {
      const int i = min(query + 8 * r, last_query);
      first[r] = visible.First(i);
      last[r] = visible.Last(i);
    }
  }
};

template <int kD>
__global__ void __launch_bounds__(kThreads)
    MmaForward(const __grid_constant__ Forward<BF16> p, const __grid_constant__ Order order) {
  constexpr int kN = kStream<kD>, kTile = kN * kStride<kD>;
  extern __shared__ __align__(128) BF16 shared[];
  BF16 *q_rows = shared, *k_rows = q_rows + kRows * kStride<kD>, *v_rows = k_rows + 2 * kTile;
  const auto [b, h, begin, last, visible, keys] = QueryTile(p, order, blockIdx.x, kRows, kN);
  const int g = h / p.group;
  const int inner_first = visible.First(last), inner_last = visible.Last(begin);
  const Lane me;
  const Bounds see(visible, begin + me.row, last);

  const auto load = [&](int key, int stage) {
    LoadRows<kN, kD>(k_rows + stage * kTile, p.k.Head(b, g), p.k.time, key, p.Tk, p.K);
    LoadRows<kN, kD>(v_rows + stage * kTile, p.v.Head(b, g), p.v.time, key, p.Tk, p.V);
    Commit();
  };
  LoadRows<kRows, kD>(q_rows, p.q.Head(b, h), p.q.time, begin, p.Tq, p.K);
  load(keys.begin, 0);
  float y[kD / 8][4] = {};
  Softmax softmax;
  for (int key = keys.begin, stage = 0; key < keys.end; key += kN, stage ^= 1) {
    if (key + kN < keys.end) {
      load(key + kN, stage ^ 1);
      WaitAndSync<1>();
    } else {
      WaitAndSync<0>();
    }
    float s[kN / 8][4] = {}, shrink[2];
    Dot<kN, kD>(q_rows + me.row / 16 * 16 * kStride<kD>, k_rows + stage * kTile, s);
    if (key < inner_first || key + kN - 1 > inner_last)
      MaskKeys<kN>(s, key + me.column, see.first, see.last);
    softmax.Add<kN>(s, p.scale * kLog2E, shrink);
    RescaleRows<kD>(y, shrink);
    Times<kN, kD>(s, v_rows + stage * kTile, y);
    __syncthreads();
  }
  float mean[2], lse[2];
  softmax.Finish(p.scale, mean, lse);
  ScaleRows<kD>(y, mean);
  StoreRows<kD>(y, p.y.Head(b, h), p.y.time, begin + me.row, p.Tq, p.V, false);
  for (int r = 0; r < 2; ++r) {
    const int i = begin + me.row + 8 * r;
    if (me.column == 0 && i < p.Tq) p.Lse(b, h)[i] = lse[r];
  }
}

template <int kD>
__global__ void __launch_bounds__(kThreads)
    MmaQueries(const __grid_constant__ Backward<BF16> p, const __grid_constant__ Order order) {
  constexpr int kN = kStream<kD>, kTile = kN * kStride<kD>;
  extern __shared__ __align__(128) BF16 shared[];
  BF16 *q_rows = shared, *dy_rows = q_rows + kRows * kStride<kD>;
  BF16 *k_rows = dy_rows + kRows * kStride<kD>, *v_rows = k_rows + 2 * kTile;
  const auto [b, h, begin, last, visible, keys] = QueryTile(p, order, blockIdx.x, kRows, kN);
  const int g = h / p.group;
  const int inner_first = visible.First(last), inner_last = visible.Last(begin);
  const Lane me;
  const Bounds see(visible, begin + me.row, last);
  const float scale2 = p.scale * kLog2E;

  const auto load = [&](int key, int stage) {
    LoadRows<kN, kD>(k_rows + stage * kTile, p.k.Head(b, g), p.k.time, key, p.Tk, p.K);
    LoadRows<kN, kD>(v_rows + stage * kTile, p.v.Head(b, g), p.v.time, key, p.Tk, p.V);
    Commit();
  };
  LoadRows<kRows, kD>(q_rows, p.q.Head(b, h), p.q.time, begin, p.Tq, p.K);
  LoadRows<kRows, kD>(dy_rows, p.dy.Head(b, h), p.dy.time, begin, p.Tq, p.V);
  load(keys.begin, 0);
  const float* of_shift = p.Shift(b, h) + begin + me.row;
  const float* of_delta = p.Delta(b, h) + begin + me.row;
  const float shift[2] = {scale2 * of_shift[0], scale2 * of_shift[8]};
  const float delta[2] = {of_delta[0], of_delta[8]};
  float dq[kD / 8][4] = {};
  for (int key = keys.begin, stage = 0; key < keys.end; key += kN, stage ^= 1) {
    if (key + kN < keys.end) {
      load(key + kN, stage ^ 1);
      WaitAndSync<1>();
    } else {
      WaitAndSync<0>();
    }
    const int warp_row = me.row / 16 * 16 * kStride<kD>;
    float s[kN / 8][4] = {}, ds[kN / 8][4] = {};
    Dot<kN, kD>(q_rows + warp_row, k_rows + stage * kTile, s);
    Dot<kN, kD>(dy_rows + warp_row, v_rows + stage * kTile, ds);
    if (key < inner_first || key + kN - 1 > inner_last)
      MaskKeys<kN>(s, key + me.column, see.first, see.last);
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        ds[j][e] = FastExp2(fmaf(s[j][e], scale2, -shift[e / 2])) * (ds[j][e] - delta[e / 2]);
    }
    Times<kN, kD>(ds, k_rows + stage * kTile, dq);
    __syncthreads();
  }
  const float scale[2] = {p.scale, p.scale};
  ScaleRows<kD>(dq, scale);
  StoreRows<kD>(dq, p.dq.Head(b, h), p.dq.time, begin + me.row, p.Tq, p.K, p.add_dq);
}

// Rows are keys here and columns queries: the scores are transposed.
template <int kD, bool kDk, bool kDv>
__global__ void __launch_bounds__(kThreads)
    MmaKeys(const __grid_constant__ Backward<BF16> p, const __grid_constant__ Order order) {
  constexpr int kN = kStream<kD>, kTile = kN * kStride<kD>;
  extern __shared__ __align__(128) BF16 shared[];
  BF16 *k_rows = shared, *v_rows = k_rows + kRows * kStride<kD>;
  BF16 *q_rows = v_rows + kRows * kStride<kD>, *dy_rows = q_rows + 2 * kTile;
  int tile, head;
  order.At(blockIdx.x, tile, head);
  const int b = head / p.Hkv, g = head % p.Hkv;
  const int begin = tile * kRows;
  const Visible visible = p.Of(b);
  const int first = max(0, begin - visible.offset) / kN * kN;
  const int last = p.prepared.last_query[b * order.tiles + tile];
  const int steps = last < first ? 0 : (last - first) / kN + 1;  // of one query head
  const Lane me;
  const float scale2 = p.scale * kLog2E;

  const auto load = [&](int step, int stage) {
    const int h = g * p.group + step / steps, query = first + step % steps * kN;
    LoadRows<kN, kD>(q_rows + stage * kTile, p.q.Head(b, h), p.q.time, query, p.Tq, p.K);
    LoadRows<kN, kD>(dy_rows + stage * kTile, p.dy.Head(b, h), p.dy.time, query, p.Tq, p.V);
    Commit();
  };
  LoadRows<kRows, kD>(k_rows, p.k.Head(b, g), p.k.time, begin, p.Tk, p.K);
  LoadRows<kRows, kD>(v_rows, p.v.Head(b, g), p.v.time, begin, p.Tk, p.V);
  if (steps > 0) load(0, 0);
  float dk[kDk ? kD / 8 : 1][4] = {}, dv[kDv ? kD / 8 : 1][4] = {};
  for (int step = 0, stage = 0; step < steps * p.group; ++step, stage ^= 1) {
    if (step + 1 < steps * p.group) {
      load(step + 1, stage ^ 1);
      WaitAndSync<1>();
    } else {
      WaitAndSync<0>();
    }
    const int query = first + step % steps * kN, warp_row = me.row / 16 * 16 * kStride<kD>;
    const int h = g * p.group + step / steps;
    float s[kN / 8][4];
    StartAtMinus<kN>(p.Shift(b, h) + query + me.column, s);
    Dot<kN, kD>(k_rows + warp_row, q_rows + stage * kTile, s);
    if (begin + kRows - 1 > visible.Last(query) ||
        begin < visible.First(min(query + kN, p.Tq) - 1)) {
      MaskQueries<kN>(s, begin + me.row, query + me.column, p.Tq - 1, visible);
    }
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[j][e] = FastExp2(scale2 * s[j][e]);
    }
    if constexpr (kDv) Times<kN, kD>(s, dy_rows + stage * kTile, dv);
    if constexpr (kDk) {
      float ds[kN / 8][4];
      StartAtMinus<kN>(p.Delta(b, h) + query + me.column, ds);
      Dot<kN, kD>(v_rows + warp_row, dy_rows + stage * kTile, ds);
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) ds[j][e] *= s[j][e];
      }
      Times<kN, kD>(ds, q_rows + stage * kTile, dk);
    }
    __syncthreads();
  }
  if constexpr (kDk) {
    const float scale[2] = {p.scale, p.scale};
    ScaleRows<kD>(dk, scale);
    StoreRows<kD>(dk, p.dk.Head(b, g), p.dk.time, begin + me.row, p.Tk, p.K, p.add_dk);
  }
  if constexpr (kDv)
    StoreRows<kD>(dv, p.dv.Head(b, g), p.dv.time, begin + me.row, p.Tk, p.V, p.add_dv);
}

template <class P>
void Run(void (*kernel)(P, Order), CudaStream& stream, const P& p, const Order& order,
         int shared_rows, int stride) {
  const int bytes = shared_rows * stride * static_cast<int>(sizeof(BF16));
  CudaCheck(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
            "attention");
  kernel<<<order.blocks(), kThreads, bytes, stream.handle()>>>(p, order);
  CheckLaunch("attention");
}

// The bytes of a head's rows that blocks read again and again.
int64_t HeadBytes(const Sizes& p, int rows, int heads) {
  return int64_t{2} * rows * heads * (p.K + p.V);
}

template <int kD>
void Launch(CudaStream& stream, const AttentionFwd& op) {
  const Forward<BF16> p(op);
  const Order order(CeilDiv(p.Tq, kRows), p.B * p.H, HeadBytes(p, p.Tk, 1) / p.group);
  Run(MmaForward<kD>, stream, p, order, kRows + 4 * kStream<kD>, kStride<kD>);
}

template <int kD>
void Launch(CudaStream& stream, const AttentionBwd& op) {
  constexpr int kSharedRows = 2 * kRows + 4 * kStream<kD>;
  const Backward<BF16> p(op, PrepareBackward(stream, op, kRows));
  const Order keys(CeilDiv(p.Tk, kRows), p.B * p.Hkv, HeadBytes(p, p.Tq, p.group));
  if constexpr (kTogether<kD>) {
    Run(MmaKeys<kD, true, true>, stream, p, keys, kSharedRows, kStride<kD>);
  } else {
    Run(MmaKeys<kD, true, false>, stream, p, keys, kSharedRows, kStride<kD>);
    Run(MmaKeys<kD, false, true>, stream, p, keys, kSharedRows, kStride<kD>);
  }
  const Order queries(CeilDiv(p.Tq, kRows), p.B * p.H, HeadBytes(p, p.Tk, 1) / p.group);
  Run(MmaQueries<kD>, stream, p, queries, kSharedRows, kStride<kD>);
}

template <class Op>
bool Choose(CudaStream& stream, const Op& op, const AttentionFwd& f) {
  const int64_t width = std::max(f.k.dim(3), f.v.dim(3));
  if (f.q.dtype() != DType::kBF16 || stream.capability() < 80 || width > 256 || f.scale <= 0 ||
      !Aligned(op)) {
    return false;
  }
  if (width <= 32) {
    Launch<32>(stream, op);
  } else if (width <= 64) {
    Launch<64>(stream, op);
  } else if (width <= 96) {
    Launch<96>(stream, op);
  } else if (width <= 128) {
    Launch<128>(stream, op);
  } else if (width <= 192) {
    Launch<192>(stream, op);
  } else {
    Launch<256>(stream, op);
  }
  return true;
}

}  // namespace
}  // namespace attention

bool TensorCoreAttention(CudaStream& stream, const AttentionFwd& op) {
  return attention::Choose(stream, op, op);
}
bool TensorCoreAttention(CudaStream& stream, const AttentionBwd& op) {
  return attention::Choose(stream, op, op.fwd);
}

}  // namespace weft
