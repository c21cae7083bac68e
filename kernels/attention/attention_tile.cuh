#pragma once
// What the kernels of attention share: which keys a query sees, the order of blocks, and the
// softmax of tiles in registers, laid out as in mma.cuh.

#include "kernels/attention/attention_cuda.h"
#include "kernels/base/mma.cuh"

namespace weft::attention {

constexpr float kLog2E = 1.44269504f;
constexpr int kRowPad = 128;  // AttentionRows are padded to multiples of this

// [B, T, H, *], the last dimension dense.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t batch = 0, time = 0, head = 0;
  Rows() = default;
  explicit Rows(const TensorView& view)
      : data(view.Data<T>()), batch(view.stride(0)), time(view.stride(1)), head(view.stride(2)) {}
  // Row 0 of one head; further ones are `time` apart.
  __device__ T* Head(int b, int h) const { return data + b * batch + h * head; }
};

// Which keys the queries of one sequence see: those from First(i) to Last(i). Both grow with i.
struct Visible {
  const int* doc_start;  // of this sequence, or null
  int offset, window;

  __device__ int Last(int i) const { return i + offset; }
  __device__ int First(int i) const {
    const int p = i + offset, start = doc_start ? __ldg(doc_start + p) : 0;
    return window > 0 ? max(start, p - window + 1) : start;
  }
};

struct Sizes {
  int B, Tq, Tk, H, Hkv, group, K, V;
  int window;
  float scale;
  const int* doc_start;
  int64_t doc_stride;

  explicit Sizes(const AttentionFwd& f)
      : B(static_cast<int>(f.q.dim(0))),
        Tq(static_cast<int>(f.q.dim(1))),
        Tk(static_cast<int>(f.k.dim(1))),
        H(static_cast<int>(f.q.dim(2))),
        Hkv(static_cast<int>(f.k.dim(2))),
        group(H / Hkv),
        K(static_cast<int>(f.k.dim(3))),
        V(static_cast<int>(f.v.dim(3))),
        window(static_cast<int>(std::min(f.window, f.k.dim(1)))),
        scale(static_cast<float>(f.scale)),
        doc_start(f.doc_start.defined() ? f.doc_start.Data<int>() : nullptr),
        doc_stride(f.doc_start.defined() ? f.doc_start.stride(0) : 0) {}
  __device__ Visible Of(int b) const {
    return {doc_start ? doc_start + b * doc_stride : nullptr, Tk - Tq, window};
  }
};

template <class T>
struct Forward : Sizes {
  Rows<const T> q, k, v;
  Rows<T> y;
  float* lse;
  int64_t lse_batch, lse_head;

  explicit Forward(const AttentionFwd& f)
      : Sizes(f),
        q(f.q),
        k(f.k),
        v(f.v),
        y(f.y),
        lse(f.lse.Data<float>()),
        lse_batch(f.lse.stride(0)),
        lse_head(f.lse.stride(1)) {}
  __device__ float* Lse(int b, int h) const { return lse + b * lse_batch + h * lse_head; }
};

template <class T>
struct Backward : Forward<T> {
  Rows<const T> dy;
  Rows<T> dq, dk, dv;
  bool add_dq, add_dk, add_dv;
  AttentionRows prepared;

  Backward(const AttentionBwd& o, const AttentionRows& rows)
      : Forward<T>(o.fwd),
        dy(o.dy),
        dq(o.dq),
        dk(o.dk),
        dv(o.dv),
        add_dq(o.dq.accumulate),
        add_dk(o.dk.accumulate),
        add_dv(o.dv.accumulate),
        prepared(rows) {}
  __device__ const float* Shift(int b, int h) const { return prepared.shift + Row(b, h); }
  __device__ const float* Delta(int b, int h) const { return prepared.delta + Row(b, h); }
  __device__ int64_t Row(int b, int h) const { return (b * this->H + h) * prepared.padded; }
};

// Whether all tensors can be read and written in packs of 16 bytes.
inline bool Aligned(const AttentionFwd& f) {
  return Packable<BF16>(f.q, 8) && Packable<BF16>(f.k, 8) && Packable<BF16>(f.v, 8) &&
         Packable<BF16>(f.y, 8);
}
inline bool Aligned(const AttentionBwd& o) {
  return Aligned(o.fwd) && Packable<BF16>(o.dy, 8) && Packable<BF16>(o.dq, 8) &&
         Packable<BF16>(o.dk, 8) && Packable<BF16>(o.dv, 8);
}

// Blocks start in this order: a few heads at a time, so that what their tiles read again stays in
// the L2 cache, and of these all first tiles before all second ones. If the heads do not come out
// even, the small section is the first: short tiles of many heads are what fills a device to the
// end.
struct Order {
  int tiles, heads, together, missing;

  Order(int tile_count, int head_count, int64_t bytes_per_head)
      : tiles(tile_count),
        heads(head_count),
        together(static_cast<int>(
            std::clamp<int64_t>((32 << 20) / std::max<int64_t>(1, bytes_per_head), 1, heads))),
        missing((heads + together - 1) / together * together - heads) {}
  __host__ __device__ int blocks() const { return tiles * heads; }
  __device__ void At(int block, int& tile, int& head) const {
    const int end = ((block + tiles * missing) / (tiles * together) + 1) * together - missing;
    const int first = max(end - together, 0), rest = block - first * tiles;
    tile = rest / (end - first);
    head = first + rest % (end - first);
  }
};

// Keys [begin, end) that the queries begin to last see, begin a multiple of the tile.
struct KeyRange {
  int begin, end;
  KeyRange() = default;
  __device__ KeyRange(const Visible& visible, int first_query, int last_query, int tile)
      : begin(visible.First(first_query) / tile * tile), end(visible.Last(last_query) + 1) {}
  __device__ int LastTile(int tile) const { return begin + (end - 1 - begin) / tile * tile; }
};

// Queries begin to last of one head, the last tile first: it sees the most keys.
struct QueryTile {
  int b, h, begin, last;
  Visible visible;
  KeyRange keys;

  __device__ QueryTile(const Sizes& p, const Order& order, int index, int rows, int key_tile) {
    int tile, head;
    order.At(index, tile, head);
    b = head / p.H;
    h = head % p.H;
    begin = (order.tiles - 1 - tile) * rows;
    last = min(begin + rows, p.Tq) - 1;
    visible = p.Of(b);
    keys = KeyRange(visible, begin, last, key_tile);
  }
};

// Scores of queries (rows) with keys (columns); `key` is that of this lane's first column.
template <int kN>
__device__ inline void MaskKeys(float (&s)[kN / 8][4], int key, const int (&first)[2],
                                const int (&last)[2]) {
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int at = key + 8 * j + e % 2;
      if (at < first[e / 2] || at > last[e / 2]) s[j][e] = -INFINITY;
    }
  }
}

// Scores of keys (rows: `key` and key + 8) with queries (columns).
template <int kN>
__device__ inline void MaskQueries(float (&s)[kN / 8][4], int key, int query, int last_query,
                                   const Visible& visible) {
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int i = min(query + 8 * j + c, last_query);
      const int first = visible.First(i), last = visible.Last(i);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int at = key + 8 * r;
        if (at < first || at > last) s[j][2 * r + c] = -INFINITY;
      }
    }
  }
}

// x = -of in every row; `of` points at this lane's first column.
template <int kN>
__device__ inline void StartAtMinus(const float* of, float (&x)[kN / 8][4]) {
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
    const float2 two = *reinterpret_cast<const float2*>(of + 8 * j);
    x[j][0] = x[j][2] = -two.x;
    x[j][1] = x[j][3] = -two.y;
  }
}

// The running softmax of two rows.
struct Softmax {
  // Weights are e^(scale (s - shift)). The shift is the largest score at some time, and moves on
  // only when a weight would exceed 2^kMost: most tiles leave it where it is, and sums need no
  // rescaling.
  static constexpr float kMost = 8;
  float shift[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};  // of this lane's weights

  // Scores become weights; scale2 = scale / log 2. Sums and products of the weights so far are to
  // be multiplied by `shrink`; the sums here already are.
  template <int kN>
  __device__ void Add(float (&s)[kN / 8][4], float scale2, float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = shift[r];
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) most = fmaxf(most, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
      most = QuadMax(most);
      const bool moves = !((most - shift[r]) * scale2 <= kMost);
      const float from = shift[r];
      if (moves) shift[r] = most;
      const float minus = shift[r] == -INFINITY ? 0 : -shift[r] * scale2;
      shrink[r] = moves ? FastExp2(fmaf(from, scale2, minus)) : 1;
      float added = 0;
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& x = s[j][2 * r + c];
          x = FastExp2(fmaf(x, scale2, minus));
          added += x;
        }
      }
      sum[r] = sum[r] * shrink[r] + added;
    }
  }
  // Factors that turn sums of weighted values into means, and the log of the sum of e^(scale s).
  __device__ void Finish(float scale, float (&mean)[2], float (&lse)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float total = QuadSum(sum[r]);
      mean[r] = 1 / total;
      lse[r] = scale * shift[r] + logf(total);
    }
  }
};

template <int kN>
__device__ inline void ScaleRows(float (&x)[kN / 8][4], const float (&by)[2]) {
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[j][e] *= by[e / 2];
  }
}

// The same where `by` is 1 more often than not.
template <int kN>
__device__ inline void RescaleRows(float (&x)[kN / 8][4], const float (&by)[2]) {
  if (__any_sync(~0u, by[0] != 1 || by[1] != 1)) ScaleRows<kN>(x, by);
}

// Four lanes exchange four words: word s of lane q becomes word q of lane s.
__device__ inline void TransposeQuad(uint32_t (&v)[4]) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = threadIdx.x & bit;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const uint32_t got = __shfl_xor_sync(~0u, upper ? v[i] : v[i + bit], bit);
      if (upper) {
        v[i] = got;
      } else {
        v[i + bit] = got;
      }
    }
  }
}

// to[row, columns below width] (+)= by x, for this lane's two rows of those before `end`; to points
// at row 0, x begins at row `row` (that of this lane).
template <int kN>
__device__ inline void StoreRows(float (&x)[kN / 8][4], BF16* to, int64_t stride, int row, int end,
                                 int width, bool add) {
  const int quarter = threadIdx.x % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    BF16* at = to + (row + 8 * r) * stride;
    const bool inside = row + 8 * r < end;
#pragma unroll
    for (int j = 0; j < kN / 8; j += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float low = x[j + i][2 * r], high = x[j + i][2 * r + 1];
        const int column = 8 * (j + i) + 2 * quarter;
        if (add && inside && column < width) {
          const float2 old =
              __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(at + column));
          low += old.x;
          high += old.y;
        }
        words[i] = PackPair(low, high);
      }
      TransposeQuad(words);
      const int column = 8 * (j + quarter);
      if (inside && column < width)
        *reinterpret_cast<uint4*>(at + column) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

}  // namespace weft::attention
