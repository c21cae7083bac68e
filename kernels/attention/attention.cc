#include "kernels/attention/attention.h"

#include <algorithm>

namespace weft {
namespace {

constexpr const char* kOp = "attention";

void CheckRank4(const char* name, const TensorView& view) {
  weft::Check(view.rank() == 4, kOp, ": ", name, " is ", view.ToString(), ", expected rank 4");
}

}  // namespace

void AttentionFwd::Check() const {
  CheckRank4("q", q);
  CheckRank4("k", k);
  CheckRank4("v", v);
  const int64_t B = q.dim(0), Tq = q.dim(1), H = q.dim(2), K = q.dim(3);
  const int64_t Tk = k.dim(1), Hkv = k.dim(2), V = v.dim(3);
  CheckShape(kOp, "k", k, {B, Tk, Hkv, K});
  CheckShape(kOp, "v", v, {B, Tk, Hkv, V});
  CheckShape(kOp, "y", y, {B, Tq, H, V});
  CheckShape(kOp, "lse", lse, {B, H, Tq});
  weft::Check(Tk >= Tq, kOp, ": ", Tq, " queries but ", Tk,
              " keys, expected at least as many keys");
  weft::Check(Hkv > 0 && H % Hkv == 0, kOp, ": ", H, " query heads, expected a multiple of the ",
              Hkv, " key-value heads");
  weft::Check(window >= 0, kOp, ": window is ", window, ", expected >= 0 (0 = all keys)");
  for (const auto& [name, view] : {std::pair{"k", &k}, {"v", &v}, {"y", &y}}) {
    CheckDType(kOp, name, *view, q.dtype());
  }
  CheckDType(kOp, "lse", lse, Wide(q.dtype()));
  for (const auto& [name, view] : {std::pair{"q", &q}, {"k", &k}, {"v", &v}, {"y", &y}}) {
    CheckDense(kOp, name, *view);
  }
  if (doc_start.defined()) {
    CheckShape(kOp, "doc_start", doc_start, {B, Tk});
    CheckDType(kOp, "doc_start", doc_start, DType::kI32);
    CheckDense(kOp, "doc_start", doc_start);
  }
}

double AttentionFwd::Pairs() const {
  const double Tq = static_cast<double>(q.dim(1)), first = static_cast<double>(k.dim(1)) - Tq + 1;
  const double most = window > 0 ? static_cast<double>(window) : first + Tq;
  const double full = std::clamp(Tq - (most - first), 0.0, Tq);  // queries that see `most` keys
  const double growing = Tq - full;                              // these see first, first + 1, ...
  const double per_head = full * most + growing * first + growing * (growing - 1) / 2;
  return per_head * static_cast<double>(q.dim(0) * q.dim(2));
}

void AttentionBwd::Check() const {
  fwd.Check();
  CheckSameShape(kOp, "dy", dy, fwd.y);
  CheckSameShape(kOp, "dq", dq, fwd.q);
  CheckSameShape(kOp, "dk", dk, fwd.k);
  CheckSameShape(kOp, "dv", dv, fwd.v);
  const TensorView views[] = {dy, dq, dk, dv};
  const char* names[] = {"dy", "dq", "dk", "dv"};
  for (int i = 0; i < 4; ++i) {
    CheckDType(kOp, names[i], views[i], fwd.q.dtype());
    CheckDense(kOp, names[i], views[i]);
  }
}

}  // namespace weft
