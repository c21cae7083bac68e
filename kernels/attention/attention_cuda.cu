// The choice of a kernel, what every backward needs first, and plain kernels for f32 and for sizes
// that the tensor cores do not take. The plain ones compute tiles of 64 x 64 in f32: 16 x 16
// threads of 4 x 4 elements, thread (y, x) holding rows 4 y to 4 y + 3 and columns x, x + 16, ...
// Outputs are cut into columns of 64, so that any K and V will do; each cut computes the scores
// again.

#include "kernels/attention/attention_tile.cuh"

namespace weft {
namespace attention {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 64, kDepth = 32;

// Rows of one head: `rows` of them, `width` elements each.
template <class T>
struct Matrix {
  T* data;
  int64_t stride;
  int rows, width;

  __device__ Matrix From(int row) const { return {data + row * stride, stride, rows - row, width}; }
  __device__ float At(int row, int column) const {
    return row < rows && column < width ? ToFloat(data[row * stride + column]) : 0;
  }
  __device__ void Put(int row, int column, float value, bool add) const {
    if (row < rows && column < width) PutFloat(data[row * stride + column], value, add);
  }
};

template <class T>
__device__ Matrix<T> HeadOf(const Rows<T>& all, int b, int h, int rows, int width) {
  return {all.Head(b, h), all.time, rows, width};
}

struct Shared {
  union {
    struct {
      float a[kTile][kDepth + 1], b[kTile][kDepth + 1];
    };
    float right[kDepth][kTile];
  };
  float left[kTile][kTile + 1];
};

struct Thread {
  int x = threadIdx.x % 16, y = threadIdx.x / 16;
  __device__ int Row(int i) const { return 4 * y + i; }
  __device__ int Column(int j) const { return x + 16 * j; }
};

using Tile = float[4][4];

// s = A B^T of the first 64 rows of both.
template <class T>
__device__ void Dot(Shared& shared, const Matrix<const T>& a, const Matrix<const T>& b, Tile& s) {
  const Thread me;
  for (auto& row : s) {
    for (float& x : row) x = 0;
  }
  for (int begin = 0; begin < a.width; begin += kDepth) {
    __syncthreads();
    for (int i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
      const int row = i / kDepth, column = i % kDepth;
      shared.a[row][column] = a.At(row, begin + column);
      shared.b[row][column] = b.At(row, begin + column);
    }
    __syncthreads();
#pragma unroll 8
    for (int d = 0; d < kDepth; ++d) {
      float left[4], right[4];
      for (int i = 0; i < 4; ++i) left[i] = shared.a[me.Row(i)][d];
      for (int j = 0; j < 4; ++j) right[j] = shared.b[me.Column(j)][d];
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) s[i][j] = fmaf(left[i], right[j], s[i][j]);
      }
    }
  }
}

// sum += P R, columns [column, column + 64) of R's first 64 rows; P is what the threads hold.
template <class T>
__device__ void Times(Shared& shared, const Tile& p, const Matrix<const T>& r, int column,
                      Tile& sum) {
  const Thread me;
  __syncthreads();
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) shared.left[me.Row(i)][me.Column(j)] = p[i][j];
  }
  for (int begin = 0; begin < kTile; begin += kDepth) {
    __syncthreads();
    for (int i = threadIdx.x; i < kDepth * kTile; i += kThreads)
      shared.right[i / kTile][i % kTile] = r.At(begin + i / kTile, column + i % kTile);
    __syncthreads();
#pragma unroll 8
    for (int d = 0; d < kDepth; ++d) {
      float left[4], right[4];
      for (int i = 0; i < 4; ++i) left[i] = shared.left[me.Row(i)][begin + d];
      for (int j = 0; j < 4; ++j) right[j] = shared.right[d][me.Column(j)];
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
      }
    }
  }
}

// f over the 16 threads that hold the same rows.
template <class F>
__device__ float ReduceRow(float x, F&& f) {
  for (int offset = 8; offset > 0; offset /= 2) x = f(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    PlainForward(const __grid_constant__ Forward<T> p, const __grid_constant__ Order order) {
  __shared__ Shared shared;
  const Thread me;
  const auto [b, h, begin, last, visible, keys] = QueryTile(p, order, blockIdx.x, kTile, kTile);
  const int column = blockIdx.y * kTile;
  const auto q = HeadOf(p.q, b, h, p.Tq, p.K).From(begin);
  const auto k = HeadOf(p.k, b, h / p.group, p.Tk, p.K);
  const auto v = HeadOf(p.v, b, h / p.group, p.Tk, p.V);

  Tile y = {};
  float most[4], sum[4] = {};
  int see_first[4], see_last[4];
  for (int i = 0; i < 4; ++i) {
    const int query = min(begin + me.Row(i), last);
    most[i] = -INFINITY;
    see_first[i] = visible.First(query);
    see_last[i] = visible.Last(query);
  }
  for (int key = keys.begin; key < keys.end; key += kTile) {
    Tile s;
    Dot<T>(shared, q, k.From(key), s);
    for (int i = 0; i < 4; ++i) {
      float now = most[i];
      for (int j = 0; j < 4; ++j) {
        const int at = key + me.Column(j);
        s[i][j] = at < see_first[i] || at > see_last[i] ? -INFINITY : p.scale * s[i][j];
        now = fmaxf(now, s[i][j]);
      }
      now = ReduceRow(now, [](float x, float z) { return fmaxf(x, z); });
      const float shift = now == -INFINITY ? 0 : now, shrink = expf(most[i] - shift);
      most[i] = now;
      sum[i] *= shrink;
      for (int j = 0; j < 4; ++j) {
        y[i][j] *= shrink;
        s[i][j] = expf(s[i][j] - shift);
        sum[i] += s[i][j];
      }
    }
    Times<T>(shared, s, v.From(key), column, y);
  }
  const auto to = HeadOf(p.y, b, h, p.Tq, p.V).From(begin);
  for (int i = 0; i < 4; ++i) {
    const float total = ReduceRow(sum[i], [](float x, float z) { return x + z; });
    for (int j = 0; j < 4; ++j) to.Put(me.Row(i), column + me.Column(j), y[i][j] / total, false);
    if (me.x == 0 && column == 0 && me.Row(i) < to.rows)
      p.Lse(b, h)[begin + me.Row(i)] = most[i] + logf(total);
  }
}

// The backward of one tile: weights and the gradients of scores, both before the scale. `see` says
// whether the query at (i, j) sees the key there, `query` which query that is.
template <class T, class See, class Query>
__device__ void Gradients(const Backward<T>& p, int b, int h, See&& see, Query&& query, Tile& s,
                          Tile& ds) {
  const float *lse = p.Lse(b, h), *delta = p.Delta(b, h);
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const bool seen = see(i, j);
      const int at = seen ? query(i, j) : 0;
      s[i][j] = seen ? expf(p.scale * s[i][j] - lse[at]) : 0;
      ds[i][j] = seen ? s[i][j] * (ds[i][j] - delta[at]) : 0;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    PlainQueries(const __grid_constant__ Backward<T> p, const __grid_constant__ Order order) {
  __shared__ Shared shared;
  const Thread me;
  const auto [b, h, begin, last, visible, keys] = QueryTile(p, order, blockIdx.x, kTile, kTile);
  const int column = blockIdx.y * kTile;
  const auto q = HeadOf(p.q, b, h, p.Tq, p.K).From(begin);
  const auto dy = HeadOf(p.dy, b, h, p.Tq, p.V).From(begin);
  const auto k = HeadOf(p.k, b, h / p.group, p.Tk, p.K);
  const auto v = HeadOf(p.v, b, h / p.group, p.Tk, p.V);

  Tile dq = {};
  for (int key = keys.begin; key < keys.end; key += kTile) {
    Tile s, ds;
    Dot<T>(shared, q, k.From(key), s);
    Dot<T>(shared, dy, v.From(key), ds);
    const auto query = [&](int i, int) { return begin + me.Row(i); };
    const auto see = [&](int i, int j) {
      const int at = key + me.Column(j), from = query(i, j);
      return from <= last && visible.First(from) <= at && at <= visible.Last(from);
    };
    Gradients(p, b, h, see, query, s, ds);
    Times<T>(shared, ds, k.From(key), column, dq);
  }
  const auto to = HeadOf(p.dq, b, h, p.Tq, p.K).From(begin);
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j)
      to.Put(me.Row(i), column + me.Column(j), p.scale * dq[i][j], p.add_dq);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    PlainKeys(const __grid_constant__ Backward<T> p, const __grid_constant__ Order order) {
  __shared__ Shared shared;
  const Thread me;
  int tile, head;
  order.At(blockIdx.x, tile, head);
  const int b = head / p.Hkv, g = head % p.Hkv, column = blockIdx.y * kTile;
  const int begin = tile * kTile;
  const Visible visible = p.Of(b);
  const auto k = HeadOf(p.k, b, g, p.Tk, p.K).From(begin);
  const auto v = HeadOf(p.v, b, g, p.Tk, p.V).From(begin);
  const int first = max(0, begin - visible.offset) / kTile * kTile;
  const int last = p.prepared.last_query[b * order.tiles + tile];

  Tile dk = {}, dv = {};
  for (int h = g * p.group; h < (g + 1) * p.group; ++h) {
    const auto q = HeadOf(p.q, b, h, p.Tq, p.K);
    const auto dy = HeadOf(p.dy, b, h, p.Tq, p.V);
    for (int i0 = first; i0 <= last; i0 += kTile) {
      Tile s, ds;
      Dot<T>(shared, k, q.From(i0), s);
      Dot<T>(shared, v, dy.From(i0), ds);
      const auto query = [&](int, int j) { return i0 + me.Column(j); };
      const auto see = [&](int i, int j) {
        const int at = begin + me.Row(i), from = query(i, j);
        return from <= last && visible.First(from) <= at && at <= visible.Last(from);
      };
      Gradients(p, b, h, see, query, s, ds);
      if (column < p.V) Times<T>(shared, s, dy.From(i0), column, dv);
      if (column < p.K) Times<T>(shared, ds, q.From(i0), column, dk);
    }
  }
  const auto to_k = HeadOf(p.dk, b, g, p.Tk, p.K).From(begin);
  const auto to_v = HeadOf(p.dv, b, g, p.Tk, p.V).From(begin);
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      to_k.Put(me.Row(i), column + me.Column(j), p.scale * dk[i][j], p.add_dk);
      to_v.Put(me.Row(i), column + me.Column(j), dv[i][j], p.add_dv);
    }
  }
}

// `lanes` lanes of a warp, a power of two, hold a row, and a warp takes kRows times as many rows of
// a head as it can hold. The heads of a query are neighbours in memory, so warps are too.
constexpr int kRows = 4;

template <class T, int kN>
__global__ void __launch_bounds__(kThreads)
    Prepare(const __grid_constant__ Backward<T> p, int key_tile, int lanes) {
  const int thread = blockIdx.x * kThreads + threadIdx.x;
  const int key_tiles = (p.Tk + key_tile - 1) / key_tile;
  if (thread < 2) p.prepared.taken[thread] = 0;
  if (thread < p.B * key_tiles) {
    const int key = min((thread % key_tiles + 1) * key_tile, p.Tk) - 1;
    const Visible visible = p.Of(thread / key_tiles);
    int low = -1, high = p.Tq;  // `low` sees `key` or an earlier one, `high` does not
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (visible.First(middle) <= key ? low : high) = middle;
    }
    p.prepared.last_query[thread] = low;
  }
  const int warp = thread / kWarp, lane = threadIdx.x % kWarp, h = warp % p.H;
  const int at_once = kWarp / lanes,
            groups = static_cast<int>(p.prepared.padded) / (kRows * at_once);
  const int b = warp / p.H / groups, begin = warp / p.H % groups * kRows * at_once + lane / lanes;
  if (b >= p.B) return;
  const T *y = p.y.Head(b, h), *dy = p.dy.Head(b, h);
  float delta[kRows] = {};
  for (int c = lane % lanes * kN; c < p.V; c += lanes * kN) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int i = begin + r * at_once;
      if (i >= p.Tq) continue;
      float left[kN], right[kN];
      Load<kN>(y + i * p.y.time + c, left);
      Load<kN>(dy + i * p.dy.time + c, right);
#pragma unroll
      for (int e = 0; e < kN; ++e) delta[r] = fmaf(left[e], right[e], delta[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    for (int offset = lanes / 2; offset > 0; offset /= 2)
      delta[r] += __shfl_xor_sync(~0u, delta[r], offset);
    if (lane % lanes != 0) continue;
    const int i = begin + r * at_once;
    const int64_t at = p.Row(b, h) + i;
    p.prepared.shift[at] = i < p.Tq ? p.Lse(b, h)[i] / p.scale : INFINITY;
    p.prepared.delta[at] = delta[r];
  }
}

}  // namespace
}  // namespace attention

AttentionRows PrepareBackward(CudaStream& stream, const AttentionBwd& op, int key_tile) {
  using namespace attention;
  const int64_t heads = op.fwd.q.dim(0) * op.fwd.q.dim(2);
  const int64_t key_tiles = CeilDiv(op.fwd.k.dim(1), key_tile) * op.fwd.q.dim(0);
  AttentionRows prepared;
  prepared.padded = CeilDiv(op.fwd.q.dim(1), kRowPad) * int64_t{kRowPad};
  const int64_t rows = heads * prepared.padded;
  prepared.shift = static_cast<float*>(
      stream.Scratch((2 * rows + key_tiles + 2) * static_cast<int64_t>(sizeof(float))));
  prepared.delta = prepared.shift + rows;
  prepared.last_query = reinterpret_cast<int*>(prepared.delta + rows);
  prepared.taken = prepared.last_query + key_tiles;
  DispatchCuda(op.fwd.q.dtype(), [&]<class T> {
    const Backward<T> p(op, prepared);
    const bool packs = Packable<T>(op.fwd.y, kPack<T>) && Packable<T>(op.dy, kPack<T>);
    int lanes = 1;
    while (lanes < kWarp && lanes * (packs ? kPack<T> : 1) < p.V) lanes *= 2;
    const int64_t threads = std::max(rows / kRows * lanes, key_tiles);
    const auto kernel = packs ? Prepare<T, kPack<T>> : Prepare<T, 1>;
    kernel<<<CeilDiv(threads, attention::kThreads), attention::kThreads, 0, stream.handle()>>>(
        p, key_tile, lanes);
  });
  CheckLaunch("attention");
  return prepared;
}

namespace {

using attention::kTile;

template <class T>
void RunPlain(CudaStream& stream, const AttentionFwd& op) {
  const attention::Forward<T> p(op);
  const attention::Order order(CeilDiv(p.Tq, kTile), p.B * p.H, 0);
  attention::PlainForward<T>
      <<<dim3(order.blocks(), CeilDiv(p.V, kTile)), attention::kThreads, 0, stream.handle()>>>(
          p, order);
}

template <class T>
void RunPlain(CudaStream& stream, const AttentionBwd& op) {
  const attention::Backward<T> p(op, PrepareBackward(stream, op, kTile));
  const attention::Order queries(CeilDiv(p.Tq, kTile), p.B * p.H, 0);
  const attention::Order keys(CeilDiv(p.Tk, kTile), p.B * p.Hkv, 0);
  attention::PlainQueries<T>
      <<<dim3(queries.blocks(), CeilDiv(p.K, kTile)), attention::kThreads, 0, stream.handle()>>>(
          p, queries);
  attention::PlainKeys<T><<<dim3(keys.blocks(), CeilDiv(std::max(p.K, p.V), kTile)),
                            attention::kThreads, 0, stream.handle()>>>(p, keys);
}

template <class Op>
void Choose(CudaStream& stream, const Op& op, DType dtype) {
#ifdef WEFT_CUDNN
  if (!stream.deterministic && CudnnAttention(stream, op)) return;
#endif
  if (HopperAttention(stream, op)) return;
  if (TensorCoreAttention(stream, op)) return;
  DispatchCuda(dtype, [&]<class T> { RunPlain<T>(stream, op); });
  CheckLaunch("attention");
}

}  // namespace

void Run(CudaStream& stream, const AttentionFwd& op) { Choose(stream, op, op.q.dtype()); }
void Run(CudaStream& stream, const AttentionBwd& op) { Choose(stream, op, op.fwd.q.dtype()); }

}  // namespace weft
