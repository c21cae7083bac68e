#pragma once
// The memory of one batch, as the views that the model reads, and of the numbers that change from
// step to step.

#include <algorithm>
#include <memory>

#include "arch/core/mixer.h"
#include "experiments/data/source.h"

namespace weft {

// One block, so that it travels to a device in one copy: tokens, labels, document starts and
// positions, i32 [B, T] each, then four f32: schedule (see adamw.h) and denominator (see
// cross_entropy.h).
class Batch {
 public:
  // In memory of its own, or in `memory` of Bytes(B, T), on the host or on a device.
  Batch(int64_t B, int64_t T)
      : B_(B), T_(T), own_(new int32_t[static_cast<size_t>(4 * B * T + 4)]()) {
    data_ = own_.get();
  }
  Batch(int64_t B, int64_t T, void* memory) : B_(B), T_(T), data_(static_cast<int32_t*>(memory)) {}

  static int64_t Bytes(int64_t B, int64_t T) { return 4 * (4 * B * T + 4); }
  int64_t B() const { return B_; }
  int64_t T() const { return T_; }

  // Rows [b, b + n).
  TensorView tokens(int64_t b, int64_t n) const { return Rows(0, b, n, "tokens"); }
  TensorView labels(int64_t b, int64_t n) const { return Rows(1, b, n, "labels"); }
  Documents documents(int64_t b, int64_t n) const {
    return {Rows(2, b, n, "doc_start"), Rows(3, b, n, "position")};
  }
  TensorView schedule() const { return {data_ + 4 * B_ * T_, DType::kF32, {3}, "schedule"}; }
  TensorView denominator() const {
    return {data_ + 4 * B_ * T_ + 3, DType::kF32, {1}, "denominator"};
  }
  TensorView whole() const { return {data_, DType::kI32, {4 * B_ * T_ + 4}, "batch"}; }

  // On the host.
  Row row(int64_t b) const {
    int32_t* at = data_ + b * T_;
    return {at, at + B_ * T_, at + 2 * B_ * T_, at + 3 * B_ * T_, T_};
  }
  // Rows [first, first + B) of the source.
  void Fill(const Source& source, int64_t first) {
    for (int64_t b = 0; b < B_; ++b) source.Fill(first + b, row(b));
  }
  // Of rows [0, rows).
  int64_t CountLabels(int64_t rows) const {
    const int32_t* label = data_ + B_ * T_;
    return rows * T_ - std::count(label, label + rows * T_, kIgnoreLabel);
  }

 private:
  TensorView Rows(int64_t part, int64_t b, int64_t n, const char* name) const {
    return TensorView(data_ + part * B_ * T_ + b * T_, DType::kI32, {n, T_}, name);
  }
  int64_t B_, T_;
  int32_t* data_;
  std::unique_ptr<int32_t[]> own_;
};

}  // namespace weft
