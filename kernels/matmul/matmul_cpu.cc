#include <algorithm>
#include <memory>
#include <type_traits>

#include "kernels/matmul/gemm.h"
#include "kernels/matmul/gemm_amx.h"
#include "kernels/matmul/matmul.h"

namespace weft {
namespace {

// Tiles follow from the shape alone, so that bits do not depend on the number of threads. The BLAS
// packs both operands anew for every tile: large tiles amortise that, and at least kItems of them
// keep the threads busy.
constexpr int64_t kItems = 8;
constexpr int64_t kMaxTileRows = 512;   // rows of x and y
constexpr int64_t kMaxTileCols = 1024;  // columns of y
constexpr int64_t kMaxTileN = 256;      // rows of dw
constexpr int64_t kMaxTileK = 512;      // columns of dw
constexpr int64_t kMinSum = 512;        // rows of x that one partial dw sums over
constexpr int64_t kGranule = 16;        // one AVX-512 register of float

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The size of the parts when n is cut into `parts` or fewer, nearly equal ones.
int64_t PartSize(int64_t n, int64_t parts) {
  return std::max(kGranule, CeilDiv(CeilDiv(n, parts), kGranule) * kGranule);
}

// C (+)= op(A) op(B) on matrix tiles, if there are any and the product is worth their packing.
template <class T>
bool MultiplyOnTiles(CpuStream& stream, bool trans_a, bool trans_b, int64_t k, Nd<const T, 2> a,
                     Nd<const T, 2> b, T beta, Nd<T, 2> c) {
  if constexpr (std::is_same_v<T, float>) {
    constexpr int64_t kMinSide = 32, kMinWork = 1 << 18;
    const int64_t m = c.shape[0], n = c.shape[1];
    if (std::min({m, n, k}) < kMinSide || m * n * k < kMinWork || !HasAmx()) return false;
    AmxGemm(stream, trans_a, trans_b, m, n, k, a.data, a.stride[0], b.data, b.stride[0], beta != 0,
            c.data, c.stride[0]);
    return true;
  }
  return false;
}

// C = A op(B) with C [m, n] cut into tiles.
template <class T>
void Multiply(CpuStream& stream, bool trans_b, int64_t k, Nd<const T, 2> a, Nd<const T, 2> b,
              T beta, Nd<T, 2> c) {
  if (MultiplyOnTiles<T>(stream, false, trans_b, k, a, b, beta, c)) return;
  const int64_t m = c.shape[0], n = c.shape[1];
  const int64_t rows = std::min(kMaxTileRows, PartSize(m, kItems));
  const int64_t cols = PartSize(n, CeilDiv(n, kMaxTileCols));
  const int64_t across = CeilDiv(n, cols);
  stream.ParallelFor(CeilDiv(m, rows) * across, [&](int64_t item, Worker&) {
    const int64_t r = item / across * rows, j = item % across * cols;
    const T* b_tile = trans_b ? &b(j, 0) : &b(0, j);
    Gemm<T>(false, trans_b, std::min(rows, m - r), std::min(cols, n - j), k, 1, &a(r, 0),
            a.stride[0], b_tile, b.stride[0], beta, &c(r, j), c.stride[0]);
  });
}

// dw (+)= dy^T x. A small dw leaves too few tiles, so the sum over the rows is cut as well and its
// parts are added in order.
template <class T>
void WeightGradient(CpuStream& stream, Nd<const T, 2> dy, Nd<const T, 2> x, Nd<T, 2> dw, T beta) {
  const int64_t rows = x.shape[0], N = dw.shape[0], K = dw.shape[1];
  if (MultiplyOnTiles<T>(stream, true, false, rows, dy, x, beta, dw)) return;
  const int64_t tile_n = PartSize(N, CeilDiv(N, kMaxTileN)),
                tile_k = PartSize(K, CeilDiv(K, kMaxTileK));
  const int64_t down = CeilDiv(N, tile_n), across = CeilDiv(K, tile_k), tiles = down * across;
  const int64_t sums = std::clamp<int64_t>(kItems / tiles, 1, std::max<int64_t>(1, rows / kMinSum));
  const int64_t summed = std::max<int64_t>(1, CeilDiv(rows, sums));
  const auto run = [&](Nd<T, 2> out, int64_t tile, int64_t begin, T b) {
    const int64_t n = tile / across * tile_n, k = tile % across * tile_k;
    Gemm<T>(true, false, std::min(tile_n, N - n), std::min(tile_k, K - k),
            std::min(summed, rows - begin), 1, &dy(begin, n), dy.stride[0], &x(begin, k),
            x.stride[0], b, &out(n, k), out.stride[0]);
  };
  if (sums == 1) {
    stream.ParallelFor(tiles, [&](int64_t tile, Worker&) { run(dw, tile, 0, beta); });
    return;
  }
  const std::unique_ptr<T[]> partial(new T[static_cast<size_t>(sums * N * K)]);
  const auto part = [&](int64_t s) { return Nd<T, 2>{partial.get() + s * N * K, {N, K}, {K, 1}}; };
  stream.ParallelFor(sums * tiles, [&](int64_t item, Worker&) {
    run(part(item / tiles), item % tiles, item / tiles * summed, 0);
  });
  stream.ParallelRanges(N, CeilDiv(N, kItems), [&](int64_t begin, int64_t end, Worker& worker) {
    T* total = worker.Alloc<T>(K);
    for (int64_t n = begin; n < end; ++n) {
      std::copy_n(&part(0)(n, 0), K, total);
      for (int64_t s = 1; s < sums; ++s) {
        const T* more = &part(s)(n, 0);
        for (int64_t k = 0; k < K; ++k) total[k] += more[k];
      }
      T* out = &dw(n, 0);
      if (beta == 0) {
        std::copy_n(total, K, out);
      } else {
        for (int64_t k = 0; k < K; ++k) out[k] += total[k];
      }
    }
  });
}

template <class T>
void Forward(CpuStream& stream, const MatmulFwd& f) {
  Multiply<T>(stream, true, f.x.dim(-1), f.x.Rows().As<const T, 2>(), f.w.As<const T, 2>(), 0,
              f.y.Rows().As<T, 2>());
}

template <class T>
void Backward(CpuStream& stream, const MatmulBwd& b) {
  const auto dy = b.dy.Rows().template As<const T, 2>();
  if (b.dx.defined()) {
    Multiply<T>(stream, false, b.dy.dim(-1), dy, b.fwd.w.As<const T, 2>(), b.dx.accumulate ? 1 : 0,
                b.dx.Rows().template As<T, 2>());
  }
  if (b.dw.defined()) {
    WeightGradient<T>(stream, dy, b.fwd.x.Rows().As<const T, 2>(), b.dw.template As<T, 2>(),
                      b.dw.accumulate ? 1 : 0);
  }
}

}  // namespace

void Run(CpuStream& stream, const MatmulFwd& f) {
  DispatchReal(f.x.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

void Run(CpuStream& stream, const MatmulBwd& b) {
  DispatchReal(b.fwd.x.dtype(), [&]<class T>() { Backward<T>(stream, b); });
}

}  // namespace weft
