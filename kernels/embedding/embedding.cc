#include "kernels/embedding/embedding.h"

namespace weft {
namespace {

constexpr const char* kOp = "embedding";

}  // namespace

void EmbeddingFwd::Check() const {
  weft::Check(tokens.rank() == 2, kOp, ": tokens is ", tokens.ToString(), ", expected rank 2");
  weft::Check(w.rank() == 2, kOp, ": w is ", w.ToString(), ", expected rank 2");
  CheckDType(kOp, "tokens", tokens, DType::kI32);
  CheckDense(kOp, "tokens", tokens);
  CheckDense(kOp, "w", w);
  CheckShape(kOp, "y", y, {tokens.dim(0), tokens.dim(1), w.dim(1)});
  CheckDense(kOp, "y", y);
  CheckDType(kOp, "y", y, w.dtype());
}

void EmbeddingBwd::Check() const {
  fwd.Check();
  CheckSameShape(kOp, "dy", dy, fwd.y);
  CheckDense(kOp, "dy", dy);
  CheckSameShape(kOp, "dw", dw, fwd.w);
  CheckDense(kOp, "dw", dw);
  CheckDType(kOp, "dw", dw, Wide(fwd.w.dtype()));
}

}  // namespace weft
