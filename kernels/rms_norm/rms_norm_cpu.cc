#include <cmath>

#include "kernels/rms_norm/rms_norm.h"

namespace weft {
namespace {

constexpr int64_t kRowsPerItem = 64;

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

// With n = h rstd and g = dy w:  dh = rstd (g - n mean(n g)),  dw = sum_rows dy n.
template <class T>
void Backward(CpuStream& stream, const RmsNormBwd& b) {
  const bool before = b.fwd.mode == Residual::kBefore, after = b.fwd.mode == Residual::kAfter;
  const auto h = (before ? b.fwd.sum : b.fwd.x).Rows().template As<const T, 2>();
  const auto dy = b.dy.Rows().template As<const T, 2>();
  const auto dsum = b.dsum.defined() ? b.dsum.Rows().template As<const T, 2>() : Nd<const T, 2>{};
  const auto w = b.fwd.w.As<const T, 1>();
  const auto rstd = b.fwd.rstd.As<const T, 1>();
  const auto dx = b.dx.Rows().template As<T, 2>();
  const auto dres = before || after ? b.dresidual.Rows().template As<T, 2>() : Nd<T, 2>{};
  const auto dw = b.dw.template As<T, 1>();
  const int64_t rows = h.shape[0], D = h.shape[1];
  const int64_t items = (rows + kRowsPerItem - 1) / kRowsPerItem;
  std::vector<T> partial(static_cast<size_t>(items * D));  // dw of each item, summed in order: bits stay fixed
  stream.ParallelRanges(rows, kRowsPerItem, [&](int64_t begin, int64_t end, Worker& worker) {
    T* dw_item = partial.data() + begin / kRowsPerItem * D;
    T* dh = worker.Alloc<T>(D);
    for (int64_t r = begin; r < end; ++r) {
      const T* hr = &h(r, 0);
      const T* dyr = &dy(r, 0);
      const T scale = rstd(r);
      T dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t d = 0; d < D; ++d) {
        dot += dyr[d] * w.data[d] * hr[d];
        dw_item[d] += dyr[d] * hr[d] * scale;
      }
      const T mean = dot * scale * scale / static_cast<T>(D);
      for (int64_t d = 0; d < D; ++d) dh[d] = scale * (dyr[d] * w.data[d] - hr[d] * mean);
      if (dsum) {
        const T* ds = &dsum(r, 0);
        for (int64_t d = 0; d < D; ++d) dh[d] += ds[d];
      }
      T* out = &dx(r, 0);
      for (int64_t d = 0; d < D; ++d) Put(out[d], dh[d], b.dx.accumulate);
      if (before || after) {
        T* res = &dres(r, 0);
        const T* from = before ? dh : dyr;
        for (int64_t d = 0; d < D; ++d) Put(res[d], from[d], b.dresidual.accumulate);
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
  DispatchReal(b.fwd.x.dtype(), [&]<class T>() { Backward<T>(stream, b); });
}

}  // namespace weft
