#include "kernels/matmul/matmul.h"

namespace weft {
namespace {

constexpr const char* kOp = "matmul";

}  // namespace

void MatmulFwd::Check() const {
  weft::Check(w.rank() == 2, kOp, ": w is ", w.ToString(), ", expected rank 2");
  CheckShape(kOp, "w", w, {w.dim(0), x.dim(-1)});
  TensorView expected = x;
  expected.set_shape(-1, w.dim(0));
  CheckSameShape(kOp, "y", y, expected);
  CheckDense(kOp, "x", x);
  CheckDense(kOp, "w", w);
  CheckDense(kOp, "y", y);
  for (const TensorView* v : {&w, &y}) CheckDType(kOp, v->name(), *v, x.dtype());
}

void MatmulBwd::Check() const {
  fwd.Check();
  CheckSameShape(kOp, "dy", dy, fwd.y);
  CheckDense(kOp, "dy", dy);
  CheckDType(kOp, "dy", dy, fwd.x.dtype());
  if (dw.defined()) {
    CheckSameShape(kOp, "dw", dw, fwd.w);
    CheckDense(kOp, "dw", dw);
    CheckDType(kOp, "dw", dw, Wide(fwd.w.dtype()));
  }
  if (dx.defined()) {
    CheckSameShape(kOp, "dx", dx, fwd.x);
    CheckDense(kOp, "dx", dx);
  }
}

}  // namespace weft
