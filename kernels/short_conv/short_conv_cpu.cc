#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/base/lanes.h"
#include "kernels/elementary/elementary.h"
#include "kernels/short_conv/short_conv.h"

namespace weft {
namespace {

constexpr int64_t kTokensPerItem = 64;
constexpr int64_t kMaxWidth = kShortConvMaxWidth;

// Everything that an item reads, and w as rows of taps.
template <class T>
struct Conv {
  explicit Conv(const ShortConvFwd& f)
      : x(f.x.As<const T, 3>()),
        history(f.history.As<const T, 3>()),
        w(f.w.As<const T, 2>()),
        doc_start(f.doc_start.As<const int32_t, 2>()),
        B(x.shape[0]),
        L(x.shape[1]),
        C(x.shape[2]),
        W(w.shape[1]),
        taps(static_cast<size_t>(W * C)) {
    for (int64_t j = 0; j < W; ++j) {
      for (int64_t c = 0; c < C; ++c) taps[static_cast<size_t>(j * C + c)] = w(c, j);
    }
  }
  int64_t Start(int64_t b, int64_t t) const { return doc_start ? doc_start(b, t) : 0; }
  // Input at time t as a document that starts at `start` sees it; null where that is zero.
  const T* Input(int64_t b, int64_t t, int64_t start) const {
    if (t >= 0) return t >= start ? &x(b, t, 0) : nullptr;
    return history && start == 0 && t >= 1 - W ? &history(b, t + W - 1, 0) : nullptr;
  }
  const T* Tap(int64_t j) const { return taps.data() + j * C; }

  Nd<const T, 3> x, history;
  Nd<const T, 2> w;
  Nd<const int32_t, 2> doc_start;
  int64_t B, L, C, W;
  std::vector<T> taps;  // [W, C]
};

// out = sum of w_i row_i, elementwise over n channels.
template <class T>
struct Terms {
  const T* row[kMaxWidth];
  const T* w[kMaxWidth];
  int count = 0;
  void Add(const T* r, const T* weight) {
    row[count] = r;
    w[count++] = weight;
  }
  template <class Put>
  void Sum(int64_t n, Put&& put) const {
    constexpr int kVectors = 4;
    int64_t c = 0;
    for (; c + kVectors * kLanes <= n; c += kVectors * kLanes) {
      Lanes<T> sum[kVectors] = {};
      for (int i = 0; i < count; ++i) {
        Unroll<kVectors>([&](auto v) WEFT_INLINE {
          sum[v] += Load(row[i] + c + v * kLanes) * Load(w[i] + c + v * kLanes);
        });
      }
      Unroll<kVectors>([&](auto v) WEFT_INLINE { put(c + v * kLanes, kLanes, sum[v]); });
    }
    for (; c < n; c += kLanes) {
      Lanes<T> sum{};
      for (int i = 0; i < count; ++i) sum += Load(row[i] + c, n - c) * Load(w[i] + c, n - c);
      put(c, n - c, sum);
    }
  }
};

template <class T>
Terms<T> TermsOf(const Conv<T>& conv, int64_t b, int64_t t) {
  Terms<T> terms;
  const int64_t start = conv.Start(b, t);
  for (int64_t j = 0; j < conv.W; ++j) {
    if (const T* row = conv.Input(b, t - conv.W + 1 + j, start)) terms.Add(row, conv.Tap(j));
  }
  return terms;
}

template <class T>
void Forward(CpuStream& stream, const ShortConvFwd& f) {
  const Conv<T> conv(f);
  const auto y = f.y.As<T, 3>(), rstd = f.rstd.As<T, 3>(), history_out = f.history_out.As<T, 3>();
  const int64_t B = conv.B, L = conv.L, C = conv.C, W = conv.W;
  const int64_t pieces = (L + kTokensPerItem - 1) / kTokensPerItem;
  stream.ParallelFor(B * pieces, [&](int64_t item, Worker&) {
    const int64_t b = item / pieces, begin = item % pieces * kTokensPerItem,
                  end = std::min(L, begin + kTokensPerItem);
    for (int64_t t = begin; t < end; ++t) {
      T* out = &y(b, t, 0);
      TermsOf(conv, b, t).Sum(C, [&](int64_t c, int64_t n, const Lanes<T>& z) WEFT_INLINE {
        Store(out + c, z, n);
      });
      if (f.silu) {
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) out[c] = Silu(out[c]);
      }
      for (int64_t g = 0; g < f.norm_channels; g += f.norm_group) {
        T* s = out + g;
        T squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t c = 0; c < f.norm_group; ++c) squares += s[c] * s[c];
        const T scale = 1 / std::sqrt(squares + static_cast<T>(f.norm_eps));
        for (int64_t c = 0; c < f.norm_group; ++c) s[c] *= scale;
        if (rstd) rstd(b, t, g / f.norm_group) = scale;
      }
    }
  });
  if (!history_out) return;
  // Oldest first: where history_out is history's memory, every row is read before it is
  // overwritten.
  for (int64_t b = 0; b < B; ++b) {
    const int64_t start = L > 0 ? conv.Start(b, L - 1) : 0;
    for (int64_t j = 0; j < W - 1; ++j) {
      const T* from = conv.Input(b, L - W + 1 + j, start);
      T* to = &history_out(b, j, 0);
      for (int64_t c = 0; c < C; ++c) to[c] = from ? from[c] : T{0};
    }
  }
}

// dz of token t: z is computed again, y = s rstd, and  ds = rstd (dy - y <y, dy>),  dz = ds
// silu'(z).
template <class T>
void PreactivationGrad(const Conv<T>& conv, const ShortConvBwd& g, const Terms<T>& terms,
                       const T* dy, const T* rstd, T* dz, T* s) {
  const ShortConvFwd& f = g.fwd;
  const int64_t C = conv.C;
  terms.Sum(C, [&](int64_t c, int64_t n, const Lanes<T>& z) WEFT_INLINE { Store(dz + c, z, n); });
  if (f.silu) {
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) {
      const T z = dz[c], sigmoid = Sigmoid(z);
      s[c] = z * sigmoid;
      dz[c] = sigmoid * (1 + z * (1 - sigmoid));
    }
  } else {
    std::copy_n(dz, f.norm_channels, s);
    std::fill_n(dz, C, T{1});
  }
  for (int64_t group = 0; group < f.norm_channels; group += f.norm_group) {
    const T scale = rstd[group / f.norm_group];
    T dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t c = group; c < group + f.norm_group; ++c) dot += s[c] * dy[c];
    dot *= scale * scale;
#pragma omp simd
    for (int64_t c = group; c < group + f.norm_group; ++c) dz[c] *= scale * (dy[c] - s[c] * dot);
  }
#pragma omp simd
  for (int64_t c = f.norm_channels; c < C; ++c) dz[c] *= dy[c];
}

template <class T>
void Backward(CpuStream& stream, const ShortConvBwd& g) {
  const Conv<T> conv(g.fwd);
  const auto dy = g.dy.As<const T, 3>(), rstd = g.fwd.rstd.As<const T, 3>();
  const auto dx = g.dx.As<T, 3>();
  const auto dw = g.dw.As<T, 2>();
  const int64_t B = conv.B, L = conv.L, C = conv.C, W = conv.W;
  const int64_t pieces = (L + kTokensPerItem - 1) / kTokensPerItem, items = B * pieces;
  std::vector<T> partial(
      static_cast<size_t>(items * W * C));  // dw of each item, summed in order: bits stay fixed
  stream.ParallelFor(items, [&](int64_t item, Worker& worker) {
    const int64_t b = item / pieces, begin = item % pieces * kTokensPerItem,
                  end = std::min(L, begin + kTokensPerItem);
    T* dw_item = partial.data() + item * W * C;
    T* s = worker.Alloc<T>(C);
    T* dz = worker.Alloc<T>(W * C);  // of the last W tokens
    const auto dz_of = [&](int64_t t) { return dz + t % W * C; };
    // dx_t needs dz up to t + W - 1. What belongs to the next item is computed again; its dw is
    // left to that item.
    for (int64_t t = begin; t < end + W - 1; ++t) {
      if (t < L) {
        const Terms<T> terms = TermsOf(conv, b, t);
        PreactivationGrad(conv, g, terms, &dy(b, t, 0), rstd ? &rstd(b, t, 0) : nullptr, dz_of(t),
                          s);
        const T* d = dz_of(t);
        for (int i = 0; t < end && i < terms.count; ++i) {
          T* sum = dw_item + (terms.w[i] - conv.Tap(0));
          const T* row = terms.row[i];
#pragma omp simd
          for (int64_t c = 0; c < C; ++c) sum[c] += d[c] * row[c];
        }
      }
      const int64_t from = t - W + 1;
      if (from < begin) continue;
      Terms<T> terms;
      for (int64_t to = from; to <= std::min(t, L - 1); ++to) {
        if (conv.Start(b, to) <= from) terms.Add(dz_of(to), conv.Tap(W - 1 - (to - from)));
      }
      T* out = &dx(b, from, 0);
      terms.Sum(C, [&](int64_t c, int64_t n, const Lanes<T>& d)
                       WEFT_INLINE { Store(out + c, d, n, g.dx.accumulate); });
    }
  });
  stream.ParallelRanges(C, 64, [&](int64_t begin, int64_t end, Worker& worker) {
    T* sum = worker.Alloc<T>(end - begin);
    for (int64_t j = 0; j < W; ++j) {
      std::fill_n(sum, end - begin, T{0});
      for (int64_t item = 0; item < items; ++item) {
        const T* part = partial.data() + (item * W + j) * C;
        for (int64_t c = begin; c < end; ++c) sum[c - begin] += part[c];
      }
      for (int64_t c = begin; c < end; ++c) Put(dw(c, j), sum[c - begin], g.dw.accumulate);
    }
  });
}

}  // namespace

void Run(CpuStream& stream, const ShortConvFwd& f) {
  DispatchReal(f.x.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

void Run(CpuStream& stream, const ShortConvBwd& g) {
  DispatchReal(g.fwd.x.dtype(), [&]<class T>() { Backward<T>(stream, g); });
}

}  // namespace weft
