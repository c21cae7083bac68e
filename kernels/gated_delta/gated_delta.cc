#include "kernels/gated_delta/gated_delta.h"

#include <algorithm>

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
  const auto projections = {&gate_a, &gate_b, &a_log, &dt_bias};
  if (std::ranges::any_of(projections, &TensorView::defined)) {
    weft::Check(!beta.defined() && !log_a.defined(), kOp,
                ": gates are given twice, as beta or log_a and as projections; leave one out");
    for (const auto& [name, gate] : {std::pair{"gate_a", &gate_a}, std::pair{"gate_b", &gate_b}}) {
      CheckShape(kOp, name, *gate, {B, T, H});
      CheckDType(kOp, name, *gate, q.dtype());
    }
    for (const auto& [name, x] : {std::pair{"a_log", &a_log}, std::pair{"dt_bias", &dt_bias}}) {
      CheckShape(kOp, name, *x, {H});
      CheckDense(kOp, name, *x);
      CheckDType(kOp, name, *x, Wide(q.dtype()));
    }
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
  if (fwd.gate_a.defined()) {
    CheckSameShape(kOp, "dgate_a", dgate_a, fwd.gate_a);
    CheckSameShape(kOp, "dgate_b", dgate_b, fwd.gate_b);
    CheckSameShape(kOp, "da_log", da_log, fwd.a_log);
    CheckSameShape(kOp, "ddt_bias", ddt_bias, fwd.dt_bias);
  }
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
