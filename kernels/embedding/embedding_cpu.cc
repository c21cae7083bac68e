#include <algorithm>

#include "kernels/embedding/embedding.h"

namespace weft {
namespace {

constexpr int64_t kRowsPerItem = 256;
constexpr int64_t kSlice = 32;  // columns of dw per item

void CheckTokens(Nd<const int32_t, 2> token, int64_t V) {
  for (int64_t b = 0; b < token.shape[0]; ++b) {
    for (int64_t t = 0; t < token.shape[1]; ++t) {
      const int32_t v = token(b, t);
      Check(v >= 0 && v < V, "embedding: token ", v, " at [", b, ", ", t, "] is not in [0, ", V,
            "), the vocabulary of the model");
    }
  }
}

template <class T>
void Forward(CpuStream& stream, const EmbeddingFwd& f) {
  const auto token = f.tokens.As<const int32_t, 2>();
  const auto w = f.w.As<const T, 2>();
  const auto y = f.y.As<T, 3>();
  CheckTokens(token, w.shape[0]);
  const int64_t length = token.shape[1];
  stream.ParallelRanges(token.shape[0] * length, kRowsPerItem,
                        [&](int64_t begin, int64_t end, Worker&) {
                          for (int64_t i = begin; i < end; ++i) {
                            const int64_t b = i / length, t = i % length;
                            std::copy_n(&w(token(b, t), 0), w.shape[1], &y(b, t, 0));
                          }
                        });
}

// Each item owns some columns of dw and walks over all tokens in order, so that no sum depends on
// timing.
template <class T>
void Backward(CpuStream& stream, const EmbeddingBwd& g) {
  const auto token = g.fwd.tokens.As<const int32_t, 2>();
  const auto dy = g.dy.As<const T, 3>();
  const auto dw = g.dw.template As<T, 2>();
  CheckTokens(token, dw.shape[0]);
  stream.ParallelRanges(dw.shape[1], kSlice, [&](int64_t begin, int64_t end, Worker&) {
    const int64_t columns = end - begin;
    if (!g.dw.accumulate) {
      for (int64_t v = 0; v < dw.shape[0]; ++v) std::fill_n(&dw(v, begin), columns, T{0});
    }
    for (int64_t b = 0; b < token.shape[0]; ++b) {
      for (int64_t t = 0; t < token.shape[1]; ++t) {
        T* out = &dw(token(b, t), begin);
        const T* in = &dy(b, t, begin);
#pragma omp simd
        for (int64_t d = 0; d < columns; ++d) out[d] += in[d];
      }
    }
  });
}

}  // namespace

void Run(CpuStream& stream, const EmbeddingFwd& f) {
  DispatchReal(f.w.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

void Run(CpuStream& stream, const EmbeddingBwd& b) {
  DispatchReal(b.fwd.w.dtype(), [&]<class T>() { Backward<T>(stream, b); });
}

}  // namespace weft
