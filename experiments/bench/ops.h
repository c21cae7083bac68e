#pragma once
// Every op at its benchmark cases, forward and backward, against the roofline of the device that
// runs it: the rate of a copy that no cache holds, and of a large matrix product, both measured in
// the same run.

#include <functional>
#include <string>

#include "experiments/train/device.h"
#include "kernels/base/op_spec.h"
#include "kernels/base/stream.h"

namespace weft {

struct OpTime {
  std::string op, label;
  bool backward;
  DType dtype;
  double ms;  // median of one call
  double flops, bytes;
  // The least time that arithmetic and memory allow over the time taken. A case that fits in the
  // caches of a CPU can exceed 1; one that is bound by exp or division cannot reach it.
  double roofline;
};

struct Roofline {
  double copy_bytes_per_second, matmul_flops_per_second;
};

// Cases whose "op/label" contains a match of the regular expression `filter`, in the device's type.
// Calls `measured` once and then `timed` for every row.
void TimeOps(const Device& device, Stream& stream, const std::string& filter,
             const std::function<void(const Roofline&)>& measured,
             const std::function<void(const OpTime&)>& timed);

}  // namespace weft
