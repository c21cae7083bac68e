#include "kernels/gated_rms_norm/gated_rms_norm.h"

namespace weft {
namespace {

constexpr const char* kOp = "gated_rms_norm";

}  // namespace

void GatedRmsNormFwd::Check() const {
  weft::Check(x.rank() == 4, kOp, ": x is ", x.ToString(), ", expected [B, T, H, V]");
  CheckSameShape(kOp, "gate", gate, x);
  CheckSameShape(kOp, "y", y, x);
  CheckShape(kOp, "w", w, {x.dim(3)});
  for (const TensorView* v : {&x, &gate, &w, &y}) CheckDense(kOp, v->name(), *v);
  for (const TensorView* v : {&gate, &y}) CheckDType(kOp, v->name(), *v, x.dtype());
  CheckDType(kOp, "w", w, Wide(x.dtype()));
  if (rstd.defined()) {
    CheckShape(kOp, "rstd", rstd, {x.dim(0), x.dim(1), x.dim(2)});
    CheckDType(kOp, "rstd", rstd, Wide(x.dtype()));
  }
}

void GatedRmsNormBwd::Check() const {
  fwd.Check();
  weft::Check(fwd.rstd.defined(), kOp, ": the backward needs rstd, but the forward was given none");
  CheckSameShape(kOp, "dy", dy, fwd.y);
  CheckSameShape(kOp, "dx", dx, fwd.x);
  CheckSameShape(kOp, "dgate", dgate, fwd.gate);
  CheckSameShape(kOp, "dw", dw, fwd.w);
  for (const TensorView* v :
       {&dy, static_cast<const TensorView*>(&dx), static_cast<const TensorView*>(&dgate)}) {
    CheckDense(kOp, v->name(), *v);
  }
}

}  // namespace weft
