#include <cmath>
#include <vector>

#include "kernels/global_norm/global_norm.h"

namespace weft {
namespace {

constexpr int64_t kBlock = 16384;

template <class T>
void Forward(CpuStream& stream, const GlobalNormFwd& f) {
  const T* x = f.x.Data<const T>();
  const int64_t n = f.x.dim(0);
  std::vector<double> squares(static_cast<size_t>((n + kBlock - 1) / kBlock));
  stream.ParallelRanges(n, kBlock, [&](int64_t begin, int64_t end, Worker&) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) {
      const double v = x[i];
      sum += v * v;
    }
    squares[static_cast<size_t>(begin / kBlock)] = sum;
  });
  double total = 0;
  for (const double s : squares) total += s;
  const double norm = std::sqrt(total), scale = f.max_norm / (norm + 1e-6);
  *f.norm.Data<T>() = static_cast<T>(norm);
  *f.scale.Data<T>() = f.max_norm <= 0 || scale > 1 ? T{1} : static_cast<T>(scale);
}

}  // namespace

void Run(CpuStream& stream, const GlobalNormFwd& f) {
  DispatchReal(f.x.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

}  // namespace weft
