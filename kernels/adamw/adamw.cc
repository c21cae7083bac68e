#include "kernels/adamw/adamw.h"

namespace weft {
namespace {

constexpr const char* kOp = "adamw";

void CheckUnit(const char* name, double value) {
  Check(value >= 0 && value < 1, kOp, ": ", name, " is ", value, ", expected in [0, 1)");
}

}  // namespace

void AdamwStep::Check() const {
  weft::Check(p.rank() == 1, kOp, ": p is ", p.ToString(), ", expected rank 1");
  for (const auto& [name, view] : {std::pair{"p", &p}, {"g", &g}, {"m", &m}, {"v", &v}}) {
    CheckSameShape(kOp, name, *view, p);
    CheckDense(kOp, name, *view);
  }
  if (scale.defined()) CheckShape(kOp, "scale", scale, {1});
  CheckShape(kOp, "schedule", schedule, {3});
  CheckDense(kOp, "schedule", schedule);
  if (copy.defined()) {
    CheckSameShape(kOp, "copy", copy, p);
    CheckDType(kOp, "copy", copy, DType::kBF16);
  }
  for (const TensorView* x : {&g, &m, &v, &scale, &schedule}) {
    if (x->defined()) CheckDType(kOp, x->name(), *x, p.dtype());
  }
  weft::Check(decayed >= 0 && decayed <= p.dim(0), kOp, ": decayed is ", decayed,
              ", expected in [0, ", p.dim(0), "]");
  CheckUnit("beta1", beta1);
  CheckUnit("beta2", beta2);
}

}  // namespace weft
