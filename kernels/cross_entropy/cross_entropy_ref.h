#pragma once
// Cross-entropy from its definition, for any scalar.

#include "kernels/cross_entropy/cross_entropy.h"

namespace weft {

template <class T>
void CrossEntropyRef(const CrossEntropyFwd& f) {
  const auto logits = f.logits.As<T, 2>();
  const auto label = f.labels.As<const int32_t, 1>();
  const auto nll = f.nll.As<T, 1>(), loss = f.loss.As<T, 1>();
  const auto mean_nll = f.mean_nll.As<T, 1>();
  T sum = 0, nlls = 0;
  for (int64_t n = 0; n < logits.shape[0]; ++n) {
    nll(n) = 0;
    if (label(n) == kNoLoss) continue;
    T total = 0;
    for (int64_t v = 0; v < logits.shape[1]; ++v) total += exp(logits(n, v));
    const T lse = log(total);
    nll(n) = lse - logits(n, label(n));
    nlls += nll(n);
    sum += nll(n) + T(f.z_loss) * lse * lse;
  }
  const T denominator = f.denominator.As<T, 1>()(0);
  loss(0) = sum / denominator;
  mean_nll(0) = nlls / denominator;
}

}  // namespace weft
