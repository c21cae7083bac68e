#include "kernels/swiglu/swiglu.h"

namespace weft {
namespace {

constexpr const char* kOp = "swiglu";

}  // namespace

void SwigluFwd::Check() const {
  TensorView expected = y;
  expected.set_shape(-1, 2 * y.dim(-1));
  CheckSameShape(kOp, "gate_up", gate_up, expected);
  CheckDense(kOp, "gate_up", gate_up);
  CheckDense(kOp, "y", y);
  CheckDType(kOp, "gate_up", gate_up, y.dtype());
}

void SwigluBwd::Check() const {
  fwd.Check();
  CheckSameShape(kOp, "dy", dy, fwd.y);
  CheckDense(kOp, "dy", dy);
  CheckSameShape(kOp, "dgate_up", dgate_up, fwd.gate_up);
  CheckDense(kOp, "dgate_up", dgate_up);
  weft::Check(dgate_up.data() != fwd.gate_up.data() || !dgate_up.accumulate, kOp,
              ": dgate_up is the memory of gate_up and cannot be added to");
  if (y.defined()) {
    CheckSameShape(kOp, "y", y, fwd.y);
    CheckDense(kOp, "y", y);
    CheckDType(kOp, "y", y, fwd.y.dtype());
  }
}

}  // namespace weft
