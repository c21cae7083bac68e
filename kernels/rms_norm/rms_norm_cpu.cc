#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/rms_norm/rms_norm.h"

namespace weft {
namespace {

constexpr int64_t kRowsPerItem = 64;
constexpr int64_t kRowsAtOnce =
    8;  // backward: so that rows do not wait for one sum after the other

template <class T>
void Forward(CpuStream& stream, const RmsNormFwd& f) {
  const auto x = f.x.Rows().As<const T, 2>();
  const auto y = f.y.Rows().As<T, 2>();
  const auto w = f.w.As<const T, 1>();
  const auto rstd = f.rstd.As<T, 1>();
  const bool before = f.mode == Residual::kBefore, after = f.mode == Residual::kAfter;
  const auto residual = before || after ? f.residual.Rows().As<const T, 2>() : Nd<const T, 2>{};
  const auto sum = before ? f.sum.Rows().As<T, 2>() : Nd<T, 2>{};
  const int64_t D = x.shape[1];
  stream.ParallelRanges(x.shape[0], kRowsPerItem, [&](int64_t begin, int64_t end, Worker&) {
    for (int64_t r = begin; r < end; ++r) {
      const T* h = &x(r, 0);
      T squares = 0;
      if (before) {
        const T* res = &residual(r, 0);
        T* s = &sum(r, 0);
#pragma omp simd reduction(+ : squares)
        for (int64_t d = 0; d < D; ++d) {
          s[d] = h[d] + res[d];
          squares += s[d] * s[d];
        }
        h = s;
      } else {
#pragma omp simd reduction(+ : squares)
        for (int64_t d = 0; d < D; ++d) squares += h[d] * h[d];
      }
      const T scale = 1 / std::sqrt(squares / static_cast<T>(D) + static_cast<T>(f.eps));
      rstd(r) = scale;
      T* out = &y(r, 0);
      if (after) {
        const T* res = &residual(r, 0);
        for (int64_t d = 0; d < D; ++d) out[d] = res[d] + h[d] * scale * w.data[d];
      } else {
        for (int64_t d = 0; d < D; ++d) out[d] = h[d] * scale * w.data[d];
      }
    }
  });
}

// With n = h rstd and g = dy w:  dh = rstd (g - n mean(n g)) + dsum,  dw = sum_rows dy n.
template <class T, Residual kMode, bool kHasResidualGrad>
void Backward(CpuStream& stream, const RmsNormBwd& b) {
  constexpr bool kBefore = kMode == Residual::kBefore;
  const auto h = (kBefore ? b.fwd.sum : b.fwd.x).Rows().template As<const T, 2>();
  const auto dy = b.dy.Rows().template As<const T, 2>();
  const auto dsum = b.dsum.defined() ? b.dsum.Rows().template As<const T, 2>() : Nd<const T, 2>{};
  const auto w = b.fwd.w.As<const T, 1>();
  const auto rstd = b.fwd.rstd.As<const T, 1>();
  const auto dx = b.dx.Rows().template As<T, 2>();
  const auto dres = kHasResidualGrad ? b.dresidual.Rows().template As<T, 2>() : Nd<T, 2>{};
  const auto dw = b.dw.template As<T, 1>();
  const bool add_dx = b.dx.accumulate, add_dres = b.dresidual.accumulate;
  const int64_t rows = h.shape[0], D = h.shape[1];
  const int64_t items = (rows + kRowsPerItem - 1) / kRowsPerItem;
  // dw of each item, summed in order, so that bits do not depend on timing.
  std::vector<T> partial(static_cast<size_t>(items * D));
  stream.ParallelRanges(rows, kRowsPerItem, [&](int64_t begin, int64_t end, Worker& worker) {
    T* dw_item = partial.data() + begin / kRowsPerItem * D;
    T* zeros = worker.Alloc<T>(D);  // stands in for a dsum that is left out
    std::fill_n(zeros, D, T{0});
    for (int64_t first = begin; first < end; first += kRowsAtOnce) {
      const int64_t last = std::min(end, first + kRowsAtOnce);
      T mean[kRowsAtOnce];
      for (int64_t r = first; r < last; ++r) {
        const T* hr = &h(r, 0);
        const T* dyr = &dy(r, 0);
        const T scale = rstd(r);
        T dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t d = 0; d < D; ++d) {
          dot += dyr[d] * w.data[d] * hr[d];
          dw_item[d] += dyr[d] * hr[d] * scale;
        }
        mean[r - first] = dot * scale * scale / static_cast<T>(D);
      }
      for (int64_t r = first; r < last; ++r) {
        const T* hr = &h(r, 0);
        const T* dyr = &dy(r, 0);
        const T* ds = dsum ? &dsum(r, 0) : zeros;
        const T scale = rstd(r), m = mean[r - first];
        T* out = &dx(r, 0);
        T* res = kHasResidualGrad ? &dres(r, 0) : nullptr;
#pragma omp simd
        for (int64_t d = 0; d < D; ++d) {
          const T dh = scale * (dyr[d] * w.data[d] - hr[d] * m) + ds[d];
          if constexpr (kHasResidualGrad) Put(res[d], kBefore ? dh : dyr[d], add_dres);
          Put(out[d], dh, add_dx);
        }
      }
    }
  });
  for (int64_t d = 0; d < D; ++d) {
    T total = 0;
    for (int64_t i = 0; i < items; ++i) total += partial[static_cast<size_t>(i * D + d)];
    Put(dw(d), total, b.dw.accumulate);
  }
}

}  // namespace

void Run(CpuStream& stream, const RmsNormFwd& f) {
  DispatchReal(f.x.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

void Run(CpuStream& stream, const RmsNormBwd& b) {
  DispatchReal(b.fwd.x.dtype(), [&]<class T>() {
    const bool also_residual = b.dresidual.defined();
    switch (b.fwd.mode) {
      case Residual::kNone:
        return Backward<T, Residual::kNone, false>(stream, b);
      case Residual::kBefore:
        return also_residual ? Backward<T, Residual::kBefore, true>(stream, b)
                             : Backward<T, Residual::kBefore, false>(stream, b);
      case Residual::kAfter:
        return also_residual ? Backward<T, Residual::kAfter, true>(stream, b)
                             : Backward<T, Residual::kAfter, false>(stream, b);
    }
  });
}

}  // namespace weft
