#pragma once
// Host buffers of one batch, as the views that the model reads.

#include <vector>

#include "arch/core/mixer.h"
#include "experiments/data/source.h"

namespace weft {

class Batch {
 public:
  Batch(int64_t B, int64_t T)
      : B_(B),
        T_(T),
        tokens_(static_cast<size_t>(B * T)),
        labels_(tokens_.size()),
        starts_(tokens_.size()) {}

  static int64_t Bytes(int64_t B, int64_t T) { return 3 * 4 * B * T; }

  Row row(int64_t b) {
    const int64_t at = b * T_;
    return {tokens_.data() + at, labels_.data() + at, starts_.data() + at, T_};
  }
  // Rows [first, first + B) of the source.
  void Fill(const Source& source, int64_t first) {
    for (int64_t b = 0; b < B_; ++b) source.Fill(first + b, row(b));
  }
  int64_t B() const { return B_; }
  int64_t T() const { return T_; }
  // Rows [b, b + n).
  TensorView tokens(int64_t b, int64_t n) { return View(tokens_, b, n, "tokens"); }
  TensorView labels(int64_t b, int64_t n) { return View(labels_, b, n, "labels"); }
  Documents documents(int64_t b, int64_t n) { return {View(starts_, b, n, "doc_start")}; }
  int64_t CountLabels() const {
    int64_t n = 0;
    for (const int32_t label : labels_) n += label != kIgnoreLabel;
    return n;
  }

 private:
  TensorView View(std::vector<int32_t>& data, int64_t b, int64_t n, const char* name) {
    return TensorView(data.data() + b * T_, DType::kI32, {n, T_}, name);
  }
  int64_t B_, T_;
  std::vector<int32_t> tokens_, labels_, starts_;
};

}  // namespace weft
