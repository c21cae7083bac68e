#include "kernels/rms_norm/rms_norm.h"

namespace weft {
namespace {

constexpr const char* kOp = "rms_norm";

}  // namespace

void RmsNormFwd::Check() const {
  CheckDense(kOp, "x", x);
  CheckShape(kOp, "w", w, {x.dim(-1)});
  CheckDense(kOp, "w", w);
  CheckSameShape(kOp, "y", y, x);
  CheckDense(kOp, "y", y);
  CheckShape(kOp, "rstd", rstd, {x.Rows().dim(0)});
  CheckDType(kOp, "y", y, x.dtype());
  for (const TensorView* v : {&w, &rstd}) CheckDType(kOp, v->name(), *v, Wide(x.dtype()));
  const bool has_residual = mode != Residual::kNone, has_sum = mode == Residual::kBefore;
  weft::Check(residual.defined() == has_residual && sum.defined() == has_sum, kOp,
              ": residual and sum must be given exactly as the mode says");
  if (has_residual) {
    CheckSameShape(kOp, "residual", residual, x);
    CheckDense(kOp, "residual", residual);
    CheckDType(kOp, "residual", residual, x.dtype());
  }
  if (has_sum) {
    CheckSameShape(kOp, "sum", sum, x);
    CheckDense(kOp, "sum", sum);
    CheckDType(kOp, "sum", sum, x.dtype());
  }
}

void RmsNormBwd::Check() const {
  fwd.Check();
  CheckSameShape(kOp, "dy", dy, fwd.y);
  CheckSameShape(kOp, "dx", dx, fwd.x);
  CheckSameShape(kOp, "dw", dw, fwd.w);
  if (dresidual.defined()) CheckSameShape(kOp, "dresidual", dresidual, fwd.residual);
  if (dsum.defined()) CheckSameShape(kOp, "dsum", dsum, fwd.sum);
}

}  // namespace weft
