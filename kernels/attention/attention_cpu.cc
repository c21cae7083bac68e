// Tiles of 8 rows by two vectors stay in registers; operands are packed so that every product has
// the form C (+)= A B with B's rows dense and whole vectors long. Every element of C is one chain
// of multiply-adds in the order of the reduction index, and masked pairs add exact zeros, so how
// queries are grouped into strips changes no bit.

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/elementary/elementary.h"

namespace weft {
namespace {

#ifdef __AVX512F__
constexpr int kVectorBytes = 64;
#else
constexpr int kVectorBytes = 32;
#endif
constexpr int64_t kRows = 8;                          // queries or keys of a tile
constexpr int64_t kBlockRows = 64, kBlockKeys = 128;  // of the backward: P and dS stay in L1/L2
constexpr int64_t kItems = 8;  // queries are split where there are fewer (batch, kv head) pairs

template <class T>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(T));
template <class T>
constexpr int64_t kPanel = 2 * kLanes<T>;  // keys of one tile of scores

template <class T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::Type;

template <class T>  // indices of a shuffle
using Lanes = Vector<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>>;

template <class T>
Vector<T>& At(T* p) {
  return *reinterpret_cast<Vector<T>*>(p);
}
template <class T>
const Vector<T>& At(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}

constexpr int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t RoundDown(int64_t n, int64_t to) { return n / to * to; }

// C[kRows, kWide vectors] (+)= A[kRows, depth] B[depth, kWide vectors]; A is stored as
// [depth, kRows] if kTransposed.
template <bool kTransposed, int kWide, class T>
void Tile(int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
          bool add) {
  Vector<T> sum[kRows][kWide];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int w = 0; w < kWide; ++w) sum[r][w] = add ? At(c + r * ldc + w * kLanes<T>) : Vector<T>{};
  }
  for (int64_t d = 0; d < depth; ++d) {
    Vector<T> right[kWide];
#pragma GCC unroll 8
    for (int w = 0; w < kWide; ++w) right[w] = At(b + w * kLanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const T left = a[kTransposed ? r : r * lda];
#pragma GCC unroll 8
      for (int w = 0; w < kWide; ++w) sum[r][w] += left * right[w];
    }
    a += kTransposed ? lda : 1;
    b += ldb;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int w = 0; w < kWide; ++w) At(c + r * ldc + w * kLanes<T>) = sum[r][w];
  }
}

// The same for n columns, a multiple of the vector length.
template <bool kTransposed, class T>
void Strip(int64_t n, int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
           int64_t ldc, bool add) {
  int64_t j = 0;
  for (; j + kPanel<T> <= n; j += kPanel<T>)
    Tile<kTransposed, 2>(depth, a, lda, b + j, ldb, c + j, ldc, add);
  if (j < n) Tile<kTransposed, 1>(depth, a, lda, b + j, ldb, c + j, ldc, add);
}

// s[kRows, keys begin to end] = A[kRows, depth] times the panels that hold these keys; begin is the
// start of a panel.
template <class T>
void Scores(int64_t begin, int64_t end, int64_t depth, const T* a, int64_t lda, const T* panels,
            T* s, int64_t lds) {
  for (int64_t j = begin; j < end; j += kPanel<T>, s += kPanel<T>) {
    Strip<false>(RoundUp(std::min(end - j, kPanel<T>), kLanes<T>), depth, a, lda,
                 panels + j * depth, kPanel<T>, s, lds, false);
  }
}

// to[n, width rounded up to whole vectors] = scale * from[n, width], zeros behind; then zero rows
// up to `rows`.
template <class T>
void PackRows(const T* from, int64_t stride, int64_t n, int64_t width, T scale, T* to,
              int64_t rows) {
  const int64_t padded = RoundUp(width, kLanes<T>), whole = RoundDown(width, kLanes<T>);
  for (int64_t i = 0; i < n; ++i, from += stride, to += padded) {
    for (int64_t c = 0; c < whole; c += kLanes<T>) At(to + c) = scale * At(from + c);
    for (int64_t c = whole; c < padded; ++c) to[c] = c < width ? scale * from[c] : T{0};
  }
  std::fill_n(to, (rows - n) * padded, T{0});
}

// A square of one vector by one vector, exchanging ever larger off-diagonal blocks.
template <class T, int kStep = 1>
void Transpose(Vector<T> (&m)[kLanes<T>]) {
  if constexpr (kStep < kLanes<T>) {
    Lanes<T> low, high;
    for (int l = 0; l < kLanes<T>; ++l) {
      low[l] = (l & kStep) ? static_cast<int>(kLanes<T>) + l - kStep : l;
      high[l] = (l & kStep) ? static_cast<int>(kLanes<T>) + l : l + kStep;
    }
    for (int i = 0; i < kLanes<T>; ++i) {
      if (i & kStep) continue;
      const Vector<T> a = m[i], b = m[i + kStep];
      m[i] = __builtin_shuffle(a, b, low);
      m[i + kStep] = __builtin_shuffle(a, b, high);
    }
    Transpose<T, 2 * kStep>(m);
  }
}

// panels[n / kPanel][width][kPanel] from rows[n, width rounded up]; n is a multiple of kPanel.
template <class T>
void PackPanels(const T* rows, int64_t n, int64_t width, T* panels) {
  const int64_t padded = RoundUp(width, kLanes<T>);
  for (int64_t j = 0; j < n; j += kLanes<T>) {
    T* panel = panels + RoundDown(j, kPanel<T>) * width + j % kPanel<T>;
    for (int64_t c = 0; c < width; c += kLanes<T>) {
      Vector<T> m[kLanes<T>];
      for (int i = 0; i < kLanes<T>; ++i) m[i] = At(rows + (j + i) * padded + c);
      Transpose<T>(m);
      for (int i = 0; i < std::min(kLanes<T>, width - c); ++i)
        At(panel + (c + i) * kPanel<T>) = m[i];
    }
  }
}

// Which keys the queries of one batch row see. First and Last grow with i.
struct Visible {
  const int32_t* doc_start;
  int64_t offset, window;

  Visible(const AttentionFwd& f, int64_t b)
      : doc_start(f.doc_start.defined() ? &f.doc_start.As<const int32_t, 2>()(b, 0) : nullptr),
        offset(f.k.dim(1) - f.q.dim(1)),
        window(f.window) {}
  int64_t Last(int64_t i) const { return i + offset; }
  int64_t First(int64_t i) const {
    const int64_t p = i + offset, start = doc_start ? doc_start[p] : 0;
    return window > 0 ? std::max(start, p - window + 1) : start;
  }
};

void CheckDocuments(const AttentionFwd& f) {
  if (!f.doc_start.defined()) return;
  const auto start = f.doc_start.As<const int32_t, 2>();
  for (int64_t b = 0; b < start.shape[0]; ++b) {
    for (int64_t t = 0; t < start.shape[1]; ++t) {
      const int32_t least = t > 0 ? start(b, t - 1) : 0;
      Check(start(b, t) >= least && start(b, t) <= t, "attention: doc_start[", b, ", ", t, "] is ",
            start(b, t), ", expected ", least, " to ", t,
            ": the index of the first token of the document that holds token ", t);
    }
  }
}

// The work is split into (chunk of queries, batch row, kv head), by shape alone, the longest chunks
// first.
struct Items {
  int64_t B, Hkv, Tq, rows, chunks;

  explicit Items(const AttentionFwd& f) : B(f.q.dim(0)), Hkv(f.k.dim(2)), Tq(f.q.dim(1)) {
    const int64_t pairs = std::max<int64_t>(1, B * Hkv), wanted = (kItems + pairs - 1) / pairs;
    rows = RoundUp(std::max<int64_t>(1, (Tq + wanted - 1) / wanted), kBlockRows);
    chunks = (Tq + rows - 1) / rows;
  }
  int64_t count() const { return chunks * B * Hkv; }
};

struct Item {
  int64_t pair, b, g, chunk, begin, end;  // queries begin to end
  int64_t keys_begin, keys_end;           // what they see, in whole panels

  Item(const Items& items, const AttentionFwd& f, int64_t panel, int64_t index) {
    pair = index % (items.B * items.Hkv);
    b = pair / items.Hkv;
    g = pair % items.Hkv;
    chunk = items.chunks - 1 - index / (items.B * items.Hkv);
    begin = chunk * items.rows;
    end = std::min(items.Tq, begin + items.rows);
    const Visible visible(f, b);
    keys_begin = RoundDown(visible.First(begin), panel);
    keys_end = RoundUp(visible.Last(end - 1) + 1, panel);
  }
};

// Of the scores s of the keys begin to end, those outside first to last become minus infinity.
template <class T>
void Mask(T* s, int64_t begin, int64_t end, int64_t first, int64_t last) {
  constexpr T kNone = -std::numeric_limits<T>::infinity();
  std::fill(s, s + std::clamp<int64_t>(first - begin, 0, end - begin), kNone);
  std::fill(s + std::clamp<int64_t>(last + 1 - begin, 0, end - begin), s + (end - begin), kNone);
}

// Combines all lanes as a balanced tree.
template <class T, int kStep = kLanes<T> / 2, class F>
T Reduce(Vector<T> v, F&& f) {
  if constexpr (kStep == 0) {
    return v[0];
  } else {
    Lanes<T> other;
    for (int l = 0; l < kLanes<T>; ++l) other[l] = l ^ kStep;
    return Reduce<T, kStep / 2>(f(v, __builtin_shuffle(v, other)), f);
  }
}

template <class T>
Vector<T> Larger(Vector<T> a, Vector<T> b) {
  return a > b ? a : b;  // b if it is NaN
}

// s[n] becomes e^(s - shift), s <= shift, and exactly 0 where that would come near the subnormal
// numbers, which are slow.
template <class T>
void Weights(T* s, int64_t n, T shift) {
  constexpr T kLeast = sizeof(T) == 4 ? -87 : -708;
  constexpr int64_t kLength = kLanes<T>;
  const T zero_below = 2 * Exp(kLeast);
  for (int64_t j = 0; j < n; j += kLength) {
    At(s + j) = Larger<T>(Vector<T>{} + kLeast, At(s + j) - shift);
  }
#pragma omp simd simdlen(kLength)
  for (int64_t j = 0; j < n; ++j) s[j] = Exp(s[j]);
  for (int64_t j = 0; j < n; j += kLength) {
    At(s + j) = At(s + j) < zero_below ? Vector<T>{} : At(s + j);
  }
}

// s[n] becomes e^(s - max s); returns the maximum and the sum.
template <class T>
std::pair<T, T> Softmax(T* s, int64_t n) {
  Vector<T> largest = At(s), sum{};
  for (int64_t j = kLanes<T>; j < n; j += kLanes<T>) largest = Larger<T>(At(s + j), largest);
  const T most = Reduce<T>(largest, Larger<T>);
  Weights(s, n, most);
  for (int64_t j = 0; j < n; j += kLanes<T>) sum += At(s + j);
  return {most, Reduce<T>(sum, [](Vector<T> a, Vector<T> b) { return a + b; })};
}

template <class T>
void Forward(CpuStream& stream, const AttentionFwd& f) {
  const auto q = f.q.As<const T, 4>(), k = f.k.As<const T, 4>(), v = f.v.As<const T, 4>();
  const auto y = f.y.As<T, 4>();
  const auto lse = f.lse.As<T, 3>();
  const int64_t Tk = k.shape[1], K = k.shape[3], V = v.shape[3],
                group = q.shape[2] / std::max<int64_t>(1, k.shape[2]);
  const int64_t Kp = RoundUp(K, kLanes<T>), Vp = RoundUp(V, kLanes<T>);
  const Items items(f);
  stream.ParallelFor(items.count(), [&](int64_t index, Worker& worker) {
    const Item item(items, f, kPanel<T>, index);
    const Visible visible(f, item.b);
    const int64_t base = item.keys_begin, n = item.keys_end - base,
                  real = std::min(Tk, item.keys_end) - base;
    T* values = worker.Alloc<T>(n * Vp);
    T* panels = worker.Alloc<T>(n * K);
    T* rows = worker.Alloc<T>(n * Kp);
    PackRows(&v(item.b, base, item.g, 0), v.stride[1], real, V, T{1}, values, n);
    PackRows(&k(item.b, base, item.g, 0), k.stride[1], real, K, T{1}, rows, n);
    PackPanels(rows, n, K, panels);
    const int64_t lds = n + kLanes<T>;  // odd in vectors: rows fall into different cache sets
    T* s = worker.Alloc<T>(kRows * lds);
    T* queries = worker.Alloc<T>(kRows * Kp);
    T* out = worker.Alloc<T>(kRows * Vp);
    for (int64_t h = item.g * group; h < (item.g + 1) * group; ++h) {
      for (int64_t i = item.begin; i < item.end; i += kRows) {
        const int64_t m = std::min(kRows, item.end - i), first = visible.First(i),
                      last = visible.Last(i + m - 1);
        const int64_t from = RoundDown(first, kPanel<T>), to = RoundUp(last + 1, kLanes<T>);
        PackRows(&q(item.b, i, h, 0), q.stride[1], m, K, static_cast<T>(f.scale), queries, kRows);
        Scores(from - base, to - base, K, queries, Kp, panels, s, lds);
        T inverse[kRows];
        for (int64_t r = 0; r < m; ++r) {
          Mask(s + r * lds, from, to, visible.First(i + r), visible.Last(i + r));
          const auto [most, sum] = Softmax(s + r * lds, to - from);
          lse(item.b, h, i + r) = most + std::log(sum);
          inverse[r] = 1 / sum;
        }
        Strip<false>(Vp, last + 1 - first, s + first - from, lds, values + (first - base) * Vp, Vp,
                     out, Vp, false);
        for (int64_t r = 0; r < m; ++r) {
          T* to_y = &y(item.b, i + r, h, 0);
          for (int64_t c = 0; c < V; ++c) to_y[c] = out[r * Vp + c] * inverse[r];
        }
      }
    }
  });
}

// With P = e^(s - lse) and dP = dy v^T:
//   dS = P (dP - <dy, y>),   dq = scale dS k,   dk = dS^T (scale q),   dv = P^T dy
template <class T>
void Backward(CpuStream& stream, const AttentionBwd& bwd) {
  const AttentionFwd& f = bwd.fwd;
  const auto q = f.q.As<const T, 4>(), k = f.k.As<const T, 4>(), v = f.v.As<const T, 4>(),
             y = f.y.As<const T, 4>();
  const auto dy = bwd.dy.As<const T, 4>();
  const auto dq = bwd.dq.template As<T, 4>(), dk = bwd.dk.template As<T, 4>(),
             dv = bwd.dv.template As<T, 4>();
  const auto lse = f.lse.As<const T, 3>();
  const int64_t Tk = k.shape[1], K = k.shape[3], V = v.shape[3],
                group = q.shape[2] / std::max<int64_t>(1, k.shape[2]);
  const int64_t Kp = RoundUp(K, kLanes<T>), Vp = RoundUp(V, kLanes<T>);
  const T scale = static_cast<T>(f.scale);
  const Items items(f);
  const int64_t pairs = items.B * items.Hkv, width = Kp + Vp;
  // What one chunk of queries adds to [dk, dv] of its keys: [end - begin, Kp + Vp].
  struct Part {
    int64_t begin, end;
    T* sums;
  };
  std::vector<Part> parts(static_cast<size_t>(items.count()));
  const auto collect = [&](int64_t pair, int64_t begin, int64_t end, T* total) {
    const int64_t b = pair / items.Hkv, g = pair % items.Hkv;
    for (int64_t j = begin; j < end; ++j) {
      std::fill_n(total, width, T{0});
      for (int64_t chunk = 0; chunk < items.chunks; ++chunk) {
        const Part& part = parts[static_cast<size_t>(chunk * pairs + pair)];
        if (j < part.begin || j >= part.end) continue;
        const T* add = part.sums + (j - part.begin) * width;
        for (int64_t c = 0; c < width; ++c) total[c] += add[c];
      }
      for (int64_t c = 0; c < K; ++c) Put((&dk(b, j, g, 0))[c], total[c], bwd.dk.accumulate);
      for (int64_t c = 0; c < V; ++c) Put((&dv(b, j, g, 0))[c], total[Kp + c], bwd.dv.accumulate);
    }
  };
  // With one chunk its sums are collected at once, out of the worker's scratch.
  std::unique_ptr<T[]> memory;
  if (items.chunks > 1) {
    int64_t size = 0;
    for (int64_t index = 0; index < items.count(); ++index) {
      const Item item(items, f, kPanel<T>, index);
      size += (item.keys_end - item.keys_begin) * width;
    }
    memory = std::make_unique_for_overwrite<T[]>(static_cast<size_t>(size));
    T* next = memory.get();
    for (int64_t index = 0; index < items.count(); ++index) {
      const Item item(items, f, kPanel<T>, index);
      parts[static_cast<size_t>(item.chunk * pairs + item.pair)].sums = next;
      next += (item.keys_end - item.keys_begin) * width;
    }
  }
  stream.ParallelFor(items.count(), [&](int64_t index, Worker& worker) {
    const Item item(items, f, kPanel<T>, index);
    const Visible visible(f, item.b);
    const int64_t base = item.keys_begin, n = item.keys_end - base,
                  real = std::min(Tk, item.keys_end) - base;
    T* k_rows = worker.Alloc<T>(n * Kp);
    T* k_panels = worker.Alloc<T>(n * K);
    T* v_rows = worker.Alloc<T>(n * Vp);
    T* v_panels = worker.Alloc<T>(n * V);
    PackRows(&k(item.b, base, item.g, 0), k.stride[1], real, K, T{1}, k_rows, n);
    PackPanels(k_rows, n, K, k_panels);
    PackRows(&v(item.b, base, item.g, 0), v.stride[1], real, V, T{1}, v_rows, n);
    PackPanels(v_rows, n, V, v_panels);
    Part& part = parts[static_cast<size_t>(item.chunk * pairs + item.pair)];
    part.begin = base;
    part.end = item.keys_end;
    if (items.chunks == 1) part.sums = worker.Alloc<T>(n * width);
    std::fill_n(part.sums, n * width, T{0});
    constexpr int64_t kStride = kBlockKeys + kLanes<T>;  // odd in vectors
    T* p = worker.Alloc<T>(kBlockRows * kStride);
    T* ds = worker.Alloc<T>(kBlockRows * kStride);
    T* queries = worker.Alloc<T>(kBlockRows * Kp);
    T* upstream = worker.Alloc<T>(kBlockRows * Vp);
    T* sum_dq = worker.Alloc<T>(kBlockRows * Kp);
    for (int64_t h = item.g * group; h < (item.g + 1) * group; ++h) {
      for (int64_t i0 = item.begin; i0 < item.end; i0 += kBlockRows) {
        const int64_t m = std::min(kBlockRows, item.end - i0), strips = (m + kRows - 1) / kRows;
        PackRows(&q(item.b, i0, h, 0), q.stride[1], m, K, scale, queries, kBlockRows);
        PackRows(&dy(item.b, i0, h, 0), dy.stride[1], m, V, T{1}, upstream, kBlockRows);
        std::fill_n(sum_dq, kBlockRows * Kp, T{0});
        T dot[kBlockRows];  // <dy, y> of each row
        for (int64_t r = 0; r < m; ++r) {
          const T* yr = &y(item.b, i0 + r, h, 0);
          const T* dyr = upstream + r * Vp;
          T sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t c = 0; c < V; ++c) sum += dyr[c] * yr[c];
          dot[r] = sum;
        }
        int64_t first[kBlockRows / kRows], end[kBlockRows / kRows];  // keys that a strip sees
        for (int64_t t = 0; t < strips; ++t) {
          first[t] = visible.First(i0 + t * kRows);
          end[t] = visible.Last(std::min(item.end, i0 + (t + 1) * kRows) - 1) + 1;
        }
        for (int64_t j0 = RoundDown(first[0], kPanel<T>); j0 < end[strips - 1]; j0 += kBlockKeys) {
          for (int64_t t = 0; t < strips; ++t) {
            const int64_t j_first = std::max(first[t], j0),
                          j_end = std::min(end[t], j0 + kBlockKeys);
            if (j_first >= j_end) continue;
            const int64_t from = RoundDown(j_first, kPanel<T>), to = RoundUp(j_end, kLanes<T>);
            T* p_strip = p + t * kRows * kStride + from - j0;
            T* ds_strip = ds + t * kRows * kStride + from - j0;
            Scores(from - base, to - base, K, queries + t * kRows * Kp, Kp, k_panels, p_strip,
                   kStride);
            Scores(from - base, to - base, V, upstream + t * kRows * Vp, Vp, v_panels, ds_strip,
                   kStride);
            for (int64_t r = 0; r < kRows; ++r) {
              const int64_t i = i0 + t * kRows + r;
              T* pr = p_strip + r * kStride;
              T* dsr = ds_strip + r * kStride;
              if (i >= item.end) {
                std::fill_n(pr, to - from, T{0});
                std::fill_n(dsr, to - from, T{0});
                continue;
              }
              Mask(pr, from, to, visible.First(i), visible.Last(i));
              const T log_sum = lse(item.b, h, i), mean = dot[i - i0];
              Weights(pr, to - from, log_sum);
              for (int64_t j = 0; j < to - from; j += kLanes<T>)
                At(dsr + j) = At(pr + j) * (At(dsr + j) - mean);
            }
            Strip<false>(Kp, j_end - j_first, ds_strip + j_first - from, kStride,
                         k_rows + (j_first - base) * Kp, Kp, sum_dq + t * kRows * Kp, Kp, true);
          }
          int64_t low = 0, high = 0;  // strips that see one of the keys j to j + kRows
          for (int64_t j = j0; j < std::min(end[strips - 1], j0 + kBlockKeys); j += kRows) {
            while (high < strips && first[high] < j + kRows) ++high;
            while (low < high && end[low] <= j) ++low;
            if (low == high) continue;
            const int64_t row = low * kRows, depth = (high - low) * kRows,
                          at = row * kStride + j - j0;
            T* sums = part.sums + (j - base) * width;
            Strip<true>(Kp, depth, ds + at, kStride, queries + row * Kp, Kp, sums, width, true);
            Strip<true>(Vp, depth, p + at, kStride, upstream + row * Vp, Vp, sums + Kp, width,
                        true);
          }
        }
        for (int64_t r = 0; r < m; ++r) {
          T* to_dq = &dq(item.b, i0 + r, h, 0);
          for (int64_t c = 0; c < K; ++c)
            Put(to_dq[c], scale * sum_dq[r * Kp + c], bwd.dq.accumulate);
        }
      }
    }
    if (items.chunks == 1) collect(item.pair, 0, Tk, worker.Alloc<T>(width));
  });
  if (items.chunks != 1) {
    const int64_t blocks = (Tk + kBlockKeys - 1) / kBlockKeys;
    stream.ParallelFor(pairs * blocks, [&](int64_t index, Worker& worker) {
      const int64_t begin = index % blocks * kBlockKeys;
      collect(index / blocks, begin, std::min(Tk, begin + kBlockKeys), worker.Alloc<T>(width));
    });
  }
}

}  // namespace

void Run(CpuStream& stream, const AttentionFwd& f) {
  CheckDocuments(f);
  DispatchReal(f.q.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

void Run(CpuStream& stream, const AttentionBwd& b) {
  CheckDocuments(b.fwd);
  DispatchReal(b.fwd.q.dtype(), [&]<class T>() { Backward<T>(stream, b); });
}

}  // namespace weft
