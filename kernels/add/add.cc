#include "kernels/add/add.h"

namespace weft {
namespace {

constexpr const char* kOp = "add";

}  // namespace

void AddFwd::Check() const {
  CheckDense(kOp, "a", a);
  CheckSameShape(kOp, "b", b, a);
  CheckDense(kOp, "b", b);
  CheckSameShape(kOp, "y", y, a);
  CheckDense(kOp, "y", y);
  for (const TensorView* x : {&b, &y}) CheckDType(kOp, x->name(), *x, a.dtype());
}

void AddBwd::Check() const {
  fwd.Check();
  CheckSameShape(kOp, "dy", dy, fwd.y);
  CheckSameShape(kOp, "da", da, fwd.a);
  CheckSameShape(kOp, "db", db, fwd.b);
}

}  // namespace weft
