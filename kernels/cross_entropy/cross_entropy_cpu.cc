#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/elementary/elementary.h"

namespace weft {
namespace {

constexpr int64_t kElementsPerItem = 16384;

int64_t RowsPerItem(int64_t V) {
  return std::max<int64_t>(1, kElementsPerItem / std::max<int64_t>(1, V));
}

void CheckLabels(const CrossEntropyFwd& f) {
  const auto label = f.labels.As<const int32_t, 1>();
  const int64_t N = f.logits.dim(0), V = f.logits.dim(1);
  for (int64_t n = 0; n < N; ++n) {
    const int32_t v = label(n);
    if (v == kNoLoss) continue;
    Check(v >= 0 && v < V, "cross_entropy: label ", v, " of row ", n, " is neither in [0, ", V,
          ") nor ", kNoLoss, " (no loss)");
  }
}

template <class T>
bool IsFirstLargest(const T* row, int64_t label, T largest) {
  int earlier = 0;
#pragma omp simd reduction(| : earlier)
  for (int64_t v = 0; v < label; ++v) earlier |= row[v] == largest;
  return row[label] == largest && earlier == 0;
}

template <class T>
void Forward(CpuStream& stream, const CrossEntropyFwd& f) {
  const auto logits = f.logits.As<const T, 2>();
  const auto label = f.labels.As<const int32_t, 1>();
  const auto nll = f.nll.As<T, 1>(), lse = f.lse.As<T, 1>(), correct = f.correct.As<T, 1>();
  const int64_t N = logits.shape[0], V = logits.shape[1];
  const auto denominator = static_cast<double>(*f.denominator.Data<T>());
  CheckLabels(f);
  stream.ParallelRanges(N, RowsPerItem(V), [&](int64_t begin, int64_t end, Worker&) {
    for (int64_t n = begin; n < end; ++n) {
      nll(n) = lse(n) = correct(n) = 0;
      if (label(n) == kNoLoss) continue;
      const T* row = &logits(n, 0);
      T largest = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : largest)
      for (int64_t v = 0; v < V; ++v) largest = row[v] > largest ? row[v] : largest;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t v = 0; v < V; ++v) sum += Exp(row[v] - largest);
      lse(n) = largest + std::log(sum);
      nll(n) = lse(n) - row[label(n)];
      if (row[label(n)] == largest) correct(n) = IsFirstLargest(row, label(n), largest);
    }
  });
  double total = 0, nlls = 0;
#pragma omp simd reduction(+ : total, nlls)
  for (int64_t n = 0; n < N; ++n) {
    const double l = lse.data[n];
    total += nll.data[n] + f.z_loss * l * l;
    nlls += nll.data[n];
  }
  Put(*f.loss.Data<T>(), static_cast<T>(total / denominator), f.accumulate);
  Put(*f.mean_nll.Data<T>(), static_cast<T>(nlls / denominator), f.accumulate);
}

template <class T, bool kAccumulate>
void Backward(CpuStream& stream, const CrossEntropyBwd& b) {
  const auto logits = b.fwd.logits.As<const T, 2>();
  const auto label = b.fwd.labels.As<const int32_t, 1>();
  const auto lse = b.fwd.lse.As<const T, 1>();
  const auto dlogits = b.dlogits.template As<T, 2>();
  const int64_t V = logits.shape[1];
  const T scale = (b.dloss.defined() ? *b.dloss.Data<T>() : T{1}) / *b.fwd.denominator.Data<T>();
  CheckLabels(b.fwd);
  stream.ParallelRanges(logits.shape[0], RowsPerItem(V), [&](int64_t begin, int64_t end, Worker&) {
    for (int64_t n = begin; n < end; ++n) {
      const T* row = &logits(n, 0);
      T* out = &dlogits(n, 0);
      if (label(n) == kNoLoss) {
        if (!kAccumulate) std::fill_n(out, V, T{0});
        continue;
      }
      const T l = lse(n), weight = scale * (1 + 2 * static_cast<T>(b.fwd.z_loss) * l);
#pragma omp simd
      for (int64_t v = 0; v < V; ++v) Put(out[v], weight * Exp(row[v] - l), kAccumulate);
      out[label(n)] -= scale;
    }
  });
}

}  // namespace

void Run(CpuStream& stream, const CrossEntropyFwd& f) {
  DispatchReal(f.logits.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

void Run(CpuStream& stream, const CrossEntropyBwd& b) {
  DispatchReal(b.fwd.logits.dtype(), [&]<class T>() {
    b.dlogits.accumulate ? Backward<T, true>(stream, b) : Backward<T, false>(stream, b);
  });
}

}  // namespace weft
