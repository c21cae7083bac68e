#include <algorithm>

#include "kernels/random_fill/random_fill.h"

namespace weft {
namespace {

constexpr int64_t kElementsPerItem = 4096;

}  // namespace

void Run(CpuStream& stream, const RandomFill& f) {
  Check(!f.copy.defined(), "random_fill: copy is bf16, which the CPU backend does not write");
  DispatchReal(f.y.dtype(), [&]<class T>() {
    T* y = f.y.Data<T>();
    stream.ParallelRanges(f.y.dim(0), kElementsPerItem, [&](int64_t begin, int64_t end, Worker&) {
      for (int64_t i = begin; i < end; ++i)
        y[i] = static_cast<T>(f.values(static_cast<uint32_t>(i)));
    });
  });
}

}  // namespace weft
