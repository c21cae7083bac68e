#include <cmath>
#include <vector>

#include "kernels/elementary/elementary.h"
#include "kernels/gated_rms_norm/gated_rms_norm.h"

namespace weft {
namespace {

constexpr int64_t kTokensPerItem = 32;

template <class T>
void Forward(CpuStream& stream, const GatedRmsNormFwd& f) {
  const auto x = f.x.As<const T, 4>(), gate = f.gate.As<const T, 4>();
  const auto w = f.w.As<const T, 1>();
  const auto y = f.y.As<T, 4>();
  const auto rstd = f.rstd.As<T, 3>();
  const auto [B, L, H, V] = x.shape;
  stream.ParallelRanges(
      B * L, kTokensPerItem, [&, L = L, H = H, V = V](int64_t begin, int64_t end, Worker&) {
        for (int64_t token = begin; token < end; ++token) {
          const int64_t b = token / L, t = token % L;
          for (int64_t h = 0; h < H; ++h) {
            const T *xr = &x(b, t, h, 0), *g = &gate(b, t, h, 0);
            T* out = &y(b, t, h, 0);
            T squares = 0;
#pragma omp simd reduction(+ : squares)
            for (int64_t c = 0; c < V; ++c) squares += xr[c] * xr[c];
            const T scale = 1 / std::sqrt(squares / static_cast<T>(V) + static_cast<T>(f.eps));
            if (rstd) rstd(b, t, h) = scale;
#pragma omp simd
            for (int64_t c = 0; c < V; ++c) out[c] = xr[c] * scale * w.data[c] * Silu(g[c]);
          }
        }
      });
}

// With n = x rstd, s = silu(gate), dn = dy w s:
//   dx = rstd (dn - n mean(n dn)),  dgate = dy n w silu'(gate),  dw = sum dy n s.
template <class T>
void Backward(CpuStream& stream, const GatedRmsNormBwd& g) {
  const GatedRmsNormFwd& f = g.fwd;
  const auto x = f.x.As<const T, 4>(), gate = f.gate.As<const T, 4>(), dy = g.dy.As<const T, 4>();
  const auto w = f.w.As<const T, 1>();
  const auto rstd = f.rstd.As<const T, 3>();
  const auto dx = g.dx.As<T, 4>(), dgate = g.dgate.As<T, 4>();
  const auto dw = g.dw.As<T, 1>();
  const auto [B, L, H, V] = x.shape;
  const int64_t items = (B * L + kTokensPerItem - 1) / kTokensPerItem;
  std::vector<T> partial(
      static_cast<size_t>(items * V));  // dw of each item, summed in order: bits stay fixed
  stream.ParallelRanges(
      B * L, kTokensPerItem, [&, L = L, H = H, V = V](int64_t begin, int64_t end, Worker& worker) {
        T* dw_item = partial.data() + begin / kTokensPerItem * V;
        T *dn = worker.Alloc<T>(V), *dg = worker.Alloc<T>(V);
        const bool add_x = g.dx.accumulate, add_gate = g.dgate.accumulate;
        for (int64_t token = begin; token < end; ++token) {
          const int64_t b = token / L, t = token % L;
          for (int64_t h = 0; h < H; ++h) {
            const T *xr = &x(b, t, h, 0), *gr = &gate(b, t, h, 0), *dyr = &dy(b, t, h, 0);
            const T scale = rstd(b, t, h);
            T dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t c = 0; c < V; ++c) {
              const T sigmoid = Sigmoid(gr[c]), silu = gr[c] * sigmoid,
                      dyn = dyr[c] * xr[c] * scale;
              dn[c] = dyr[c] * w.data[c] * silu;
              dg[c] = dyn * w.data[c] * sigmoid * (1 + gr[c] * (1 - sigmoid));
              dw_item[c] += dyn * silu;
              dot += dn[c] * xr[c];
            }
            const T mean = dot * scale * scale / static_cast<T>(V);
            T *out_x = &dx(b, t, h, 0), *out_g = &dgate(b, t, h, 0);
#pragma omp simd
            for (int64_t c = 0; c < V; ++c) Put(out_x[c], scale * (dn[c] - xr[c] * mean), add_x);
#pragma omp simd
            for (int64_t c = 0; c < V; ++c) Put(out_g[c], dg[c], add_gate);
          }
        }
      });
  for (int64_t c = 0; c < V; ++c) {
    T sum = 0;
    for (int64_t item = 0; item < items; ++item) sum += partial[static_cast<size_t>(item * V + c)];
    Put(dw(c), sum, g.dw.accumulate);
  }
}

}  // namespace

void Run(CpuStream& stream, const GatedRmsNormFwd& f) {
  DispatchReal(f.x.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

void Run(CpuStream& stream, const GatedRmsNormBwd& g) {
  DispatchReal(g.fwd.x.dtype(), [&]<class T>() { Backward<T>(stream, g); });
}

}  // namespace weft
