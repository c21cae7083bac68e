#include <cmath>
#include <limits>
#include <vector>

#include "kernels/global_norm/global_norm.h"

namespace weft {
namespace {

constexpr int64_t kBlock = 16384;
constexpr int64_t kLanes = 32;  // independent sums, so that additions need not wait for each other

template <class T>
double SumOfSquares(const T* x, int64_t n) {
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int64_t j = 0; j < kLanes; ++j) {
      const double v = x[i + j];
      lane[j] += v * v;
    }
  }
  double sum = 0;
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  for (const double l : lane) sum += l;
  return sum;
}

template <class T>
void Forward(CpuStream& stream, const GlobalNormFwd& f) {
  const T* x = f.x.Data<const T>();
  const int64_t n = f.x.dim(0);
  std::vector<double> squares(static_cast<size_t>((n + kBlock - 1) / kBlock));
  stream.ParallelRanges(n, kBlock, [&](int64_t begin, int64_t end, Worker&) {
    squares[static_cast<size_t>(begin / kBlock)] = SumOfSquares(x + begin, end - begin);
  });
  double total = 0;
  for (const double s : squares) total += s;
  const double norm = std::sqrt(total), scale = f.max_norm / (norm + 1e-6);
  *f.norm.Data<T>() = static_cast<T>(norm);
  const double clipped = f.max_norm <= 0 || scale > 1 ? 1 : scale;
  *f.scale.Data<T>() =
      std::isfinite(norm) ? static_cast<T>(clipped) : std::numeric_limits<T>::quiet_NaN();
}

}  // namespace

void Run(CpuStream& stream, const GlobalNormFwd& f) {
  DispatchReal(f.x.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

}  // namespace weft
