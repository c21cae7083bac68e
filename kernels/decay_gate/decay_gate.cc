#include "kernels/decay_gate/decay_gate.h"

namespace weft {
namespace {

constexpr const char* kOp = "decay_gate";

}  // namespace

void DecayGateFwd::Check() const {
  weft::Check(a.rank() == 3, kOp, ": a is ", a.ToString(), ", expected [B, T, H]");
  CheckSameShape(kOp, "b", b, a);
  CheckSameShape(kOp, "log_a", log_a, a);
  CheckSameShape(kOp, "beta", beta, a);
  CheckShape(kOp, "a_log", a_log, {a.dim(2)});
  CheckShape(kOp, "dt_bias", dt_bias, {a.dim(2)});
  CheckDType(kOp, "b", b, a.dtype());
  for (const TensorView* x : {&log_a, &beta, &a_log, &dt_bias})
    CheckDType(kOp, x->name(), *x, Wide(a.dtype()));
}

void DecayGateBwd::Check() const {
  fwd.Check();
  CheckSameShape(kOp, "dlog_a", dlog_a, fwd.a);
  CheckSameShape(kOp, "dbeta", dbeta, fwd.a);
  CheckSameShape(kOp, "da", da, fwd.a);
  CheckSameShape(kOp, "db", db, fwd.a);
  CheckSameShape(kOp, "da_log", da_log, fwd.a_log);
  CheckSameShape(kOp, "ddt_bias", ddt_bias, fwd.dt_bias);
}

}  // namespace weft
