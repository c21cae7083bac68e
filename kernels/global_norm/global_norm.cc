#include "kernels/global_norm/global_norm.h"

namespace weft {
namespace {

constexpr const char* kOp = "global_norm";

}  // namespace

void GlobalNormFwd::Check() const {
  weft::Check(x.rank() == 1, kOp, ": x is ", x.ToString(), ", expected rank 1");
  CheckDense(kOp, "x", x);
  CheckShape(kOp, "norm", norm, {1});
  CheckShape(kOp, "scale", scale, {1});
}

}  // namespace weft
