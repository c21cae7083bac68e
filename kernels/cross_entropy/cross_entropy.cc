#include "kernels/cross_entropy/cross_entropy.h"

namespace weft {
namespace {

constexpr const char* kOp = "cross_entropy";

}  // namespace

void CrossEntropyFwd::Check() const {
  weft::Check(logits.rank() == 2, kOp, ": logits is ", logits.ToString(), ", expected rank 2");
  const int64_t N = logits.dim(0);
  CheckDense(kOp, "logits", logits);
  CheckDType(kOp, "labels", labels, DType::kI32);
  for (const auto& [name, view] :
       {std::pair{"labels", &labels}, {"nll", &nll}, {"lse", &lse}, {"correct", &correct}}) {
    CheckShape(kOp, name, *view, {N});
    CheckDense(kOp, name, *view);
  }
  CheckShape(kOp, "loss", loss, {1});
  CheckShape(kOp, "mean_nll", mean_nll, {1});
  CheckShape(kOp, "denominator", denominator, {1});
  for (const TensorView* v : {&nll, &lse, &correct, &loss, &mean_nll, &denominator})
    CheckDType(kOp, v->name(), *v, Wide(logits.dtype()));
}

void CrossEntropyBwd::Check() const {
  fwd.Check();
  if (dloss.defined()) CheckShape(kOp, "dloss", dloss, {1});
  CheckSameShape(kOp, "dlogits", dlogits, fwd.logits);
  CheckDense(kOp, "dlogits", dlogits);
  weft::Check(dlogits.data() != fwd.logits.data() || !dlogits.accumulate, kOp,
              ": dlogits is the memory of logits and cannot be added to");
}

}  // namespace weft
