#include "arch/ops/linear.h"

#include "kernels/matmul/matmul.h"

namespace weft {
namespace {

// The first `n` rows from where the matrix `w` begins.
TensorView WithRows(const TensorView& w, int64_t n) {
  if (!w.defined()) return w;
  return TensorView(w.data(), w.dtype(), {n, w.dim(1)}, w.name());
}

void Run(Context& c, Tape& tape, const Var& x, const Var& w, const Var& y) {
  const MatmulFwd fwd{x.x, w.x, y.x};
  tape.Run(c, fwd, MatmulBwd{fwd, y.dx, GradOf(x), GradOf(w)});
}

}  // namespace

Var Linear(Context& c, Tape& tape, const Var& x, const Var& w, const char* name) {
  const Var y = tape.NewVar(c, name, {x.x.dim(0), x.x.dim(1), w.x.dim(0)});
  Run(c, tape, x, w, y);
  return y;
}

Var LinearInParts(Context& c, Tape& tape, const Var& x, const Param& w, const char* name) {
  const int64_t N = w.shape[0], padded = RoundUpRows(N);
  const Var y = tape.NewVar(c, name, {x.x.dim(0), x.x.dim(1), padded});
  Run(c, tape, x, {WithRows(w.var.x, padded), WithRows(w.var.dx, padded)}, y);
  if (padded == N) return y;
  const Var behind = tape.Slice(y, 2, N, padded - N);
  tape.Record({behind.dx},
              [=](Context& context, Tape& t) { Zero(context.stream, t.Written(behind.dx)); });
  return tape.Slice(y, 2, 0, N);
}

Var SplitLast(const Var& v, int64_t n, int64_t m) {
  return {v.x.Split(-1, n, m), v.dx.defined() ? v.dx.Split(-1, n, m) : TensorView()};
}

Var MergeLast(const Var& v) {
  const int last = v.x.rank() - 2;
  return {v.x.Merge(last), v.dx.defined() ? v.dx.Merge(last) : TensorView()};
}

}  // namespace weft
