#include "kernels/gated_delta/gated_delta.h"

namespace weft {
namespace {

constexpr const char* kOp = "gated_delta";

}  // namespace

void GatedDeltaFwd::Check() const {
  weft::Check(q.rank() == 4 && v.rank() == 4, kOp, ": q is ", q.ToString(), " and v is ",
              v.ToString(), ", expected [B, T, H, K] and [B, T, H, V]");
  const int64_t B = q.dim(0), T = q.dim(1), H = q.dim(2), K = q.dim(3), V = v.dim(3);
  CheckShape(kOp, "k", k, {B, T, H, K});
  CheckShape(kOp, "v", v, {B, T, H, V});
  CheckShape(kOp, "y", y, {B, T, H, V});
  for (const TensorView* x : {&q, &k, &v, &y}) CheckDense(kOp, x->name(), *x);
  for (const TensorView* x : {&k, &v, &y}) CheckDType(kOp, x->name(), *x, q.dtype());
  for (const auto& [name, gate] : {std::pair{"beta", &beta}, std::pair{"log_a", &log_a}}) {
    if (!gate->defined()) continue;
    CheckShape(kOp, name, *gate, {B, T, H});
    CheckDType(kOp, name, *gate, Wide(q.dtype()));
  }
  if (doc_start.defined()) {
    CheckShape(kOp, "doc_start", doc_start, {B, T});
    CheckDType(kOp, "doc_start", doc_start, DType::kI32);
  }
  for (const auto& [name, state] :
       {std::pair{"initial", &initial}, std::pair{"final_state", &final_state}}) {
    if (!state->defined()) continue;
    CheckShape(kOp, name, *state, {B, H, K, V});
    CheckDense(kOp, name, *state);
    CheckDType(kOp, name, *state, Wide(q.dtype()));
  }
  if (states.defined()) {
    CheckShape(kOp, "states", states, {B, GatedDeltaChunks(T), H, K * V});
    CheckDense(kOp, "states", states);
    CheckDType(kOp, "states", states, q.dtype());
  }
}

void GatedDeltaBwd::Check() const {
  fwd.Check();
  weft::Check(fwd.states.defined(), kOp,
              ": the backward needs the saved states, but the forward was given none");
  CheckSameShape(kOp, "dy", dy, fwd.y);
  CheckDense(kOp, "dy", dy);
  CheckSameShape(kOp, "dq", dq, fwd.q);
  CheckSameShape(kOp, "dk", dk, fwd.k);
  CheckSameShape(kOp, "dv", dv, fwd.v);
  if (dbeta.defined()) CheckSameShape(kOp, "dbeta", dbeta, fwd.beta);
  if (dlog_a.defined()) CheckSameShape(kOp, "dlog_a", dlog_a, fwd.log_a);
  for (const Grad* d : {&dq, &dk, &dv}) CheckDense(kOp, d->name(), *d);
  const int64_t B = fwd.q.dim(0), H = fwd.q.dim(2), K = fwd.q.dim(3), V = fwd.v.dim(3);
  for (const auto& [name, state] :
       {std::pair<const char*, const TensorView*>{"dfinal", &dfinal}, {"dinitial", &dinitial}}) {
    if (!state->defined()) continue;
    CheckShape(kOp, name, *state, {B, H, K, V});
    CheckDense(kOp, name, *state);
  }
}

}  // namespace weft
