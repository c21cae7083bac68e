#include "kernels/qk_norm_rope/qk_norm_rope.h"

namespace weft {
namespace {

constexpr const char* kOp = "qk_norm_rope";

}  // namespace

void QkNormRopeFwd::Check() const {
  weft::Check(x.rank() == 4, kOp, ": x is ", x.ToString(), ", expected rank 4");
  const int64_t B = x.dim(0), T = x.dim(1), H = x.dim(2), K = x.dim(3);
  CheckDense(kOp, "x", x);
  CheckSameShape(kOp, "y", y, x);
  CheckDense(kOp, "y", y);
  CheckDType(kOp, "y", y, x.dtype());
  if (norm == QkNorm::kNone) {
    weft::Check(!w.defined() && !rstd.defined(), kOp,
                ": w and rstd are given, expected neither without a norm");
  } else {
    const bool head = norm == QkNorm::kHead;
    CheckShape(kOp, "w", w, {head ? K : H * K});
    CheckDense(kOp, "w", w);
    CheckDType(kOp, "w", w, Wide(x.dtype()));
    head ? CheckShape(kOp, "rstd", rstd, {B, T, H}) : CheckShape(kOp, "rstd", rstd, {B, T});
    CheckDType(kOp, "rstd", rstd, Wide(x.dtype()));
  }
  weft::Check(theta == 0 || theta > 1, kOp, ": theta is ", theta,
              ", expected more than 1, or 0 for no rotation");
  weft::Check(theta == 0 || K % 2 == 0, kOp, ": the head dimension is ", K,
              ", expected an even number to rotate");
  weft::Check(offset >= 0, kOp, ": offset is ", offset, ", expected a position, >= 0");
}

void QkNormRopeBwd::Check() const {
  fwd.Check();
  CheckSameShape(kOp, "dy", dy, fwd.x);
  CheckDense(kOp, "dy", dy);
  CheckDType(kOp, "dy", dy, fwd.x.dtype());
  CheckSameShape(kOp, "dx", dx, fwd.x);
  CheckDense(kOp, "dx", dx);
  CheckDType(kOp, "dx", dx, fwd.x.dtype());
  if (fwd.norm != QkNorm::kNone) {
    CheckSameShape(kOp, "dw", dw, fwd.w);
    CheckDense(kOp, "dw", dw);
    CheckDType(kOp, "dw", dw, Wide(fwd.x.dtype()));
  }
}

}  // namespace weft
