#include "kernels/short_conv/short_conv.h"

namespace weft {
namespace {

constexpr const char* kOp = "short_conv";

}  // namespace

void ShortConvFwd::Check() const {
  weft::Check(x.rank() == 3 && w.rank() == 2, kOp, ": x is ", x.ToString(), " and w is ",
              w.ToString(), ", expected [B, T, C] and [C, W]");
  const int64_t B = x.dim(0), T = x.dim(1), C = x.dim(2), W = w.dim(1);
  weft::Check(W >= 1 && W <= kShortConvMaxWidth, kOp, ": width ", W, " is not in [1, ",
              kShortConvMaxWidth, "]");
  CheckDense(kOp, "x", x);
  CheckShape(kOp, "w", w, {C, W});
  CheckDType(kOp, "w", w, x.dtype());
  CheckShape(kOp, "y", y, {B, T, C});
  CheckDense(kOp, "y", y);
  CheckDType(kOp, "y", y, x.dtype());
  if (doc_start.defined()) {
    CheckShape(kOp, "doc_start", doc_start, {B, T});
    CheckDType(kOp, "doc_start", doc_start, DType::kI32);
  }
  if (history.defined()) {
    CheckShape(kOp, "history", history, {B, W - 1, C});
    CheckDense(kOp, "history", history);
    CheckDType(kOp, "history", history, x.dtype());
  }
  if (history_out.defined()) {
    CheckShape(kOp, "history_out", history_out, {B, W - 1, C});
    CheckDense(kOp, "history_out", history_out);
    CheckDType(kOp, "history_out", history_out, x.dtype());
  }
  weft::Check(norm_channels >= 0 && norm_channels <= C, kOp, ": norm_channels = ", norm_channels,
              " is not in [0, ", C, "]");
  if (norm_channels > 0) {
    weft::Check(norm_group > 0 && norm_channels % norm_group == 0, kOp,
                ": norm_channels = ", norm_channels,
                " is not a multiple of norm_group = ", norm_group);
    if (rstd.defined()) {
      CheckShape(kOp, "rstd", rstd, {B, T, norm_channels / norm_group});
      CheckDType(kOp, "rstd", rstd, Wide(x.dtype()));
    }
  } else {
    weft::Check(!rstd.defined(), kOp, ": rstd is given, but norm_channels is 0");
  }
}

void ShortConvBwd::Check() const {
  fwd.Check();
  weft::Check(fwd.norm_channels == 0 || fwd.rstd.defined(), kOp,
              ": the backward needs rstd, but the forward was given none");
  CheckSameShape(kOp, "dy", dy, fwd.y);
  CheckDense(kOp, "dy", dy);
  CheckSameShape(kOp, "dx", dx, fwd.x);
  CheckDense(kOp, "dx", dx);
  CheckSameShape(kOp, "dw", dw, fwd.w);
  CheckDType(kOp, "dw", dw, Wide(fwd.w.dtype()));
}

}  // namespace weft
