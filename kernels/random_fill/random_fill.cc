#include "kernels/random_fill/random_fill.h"

#include <limits>

namespace weft {
namespace {

constexpr const char* kOp = "random_fill";

}  // namespace

void RandomFill::Check() const {
  weft::Check(y.rank() == 1, kOp, ": y is ", y.ToString(), ", expected rank 1");
  CheckDense(kOp, "y", y);
  weft::Check(y.dim(0) <= std::numeric_limits<uint32_t>::max(), kOp, ": y is ", y.ToString(),
              ", expected less than 2^32 elements");
  if (copy.defined()) {
    CheckSameShape(kOp, "copy", copy, y);
    CheckDense(kOp, "copy", copy);
    CheckDType(kOp, "copy", copy, DType::kBF16);
  }
  weft::Check(values.low <= values.high, kOp, ": low is ", values.low, ", expected at most ",
              values.high);
  const bool logarithms = values.distribution == Distribution::kLogarithm ||
                          values.distribution == Distribution::kInverseSoftplus;
  weft::Check(!logarithms || values.low > 0, kOp, ": low is ", values.low,
              ", expected more than 0: its logarithm is taken");
  weft::Check(values.sigma >= 0, kOp, ": sigma is ", values.sigma, ", expected at least 0");
}

}  // namespace weft
