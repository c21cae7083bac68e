#include "arch/ops/linear.h"

#include "kernels/matmul/matmul.h"

namespace weft {
namespace {

constexpr int64_t kRowAlign = 16;

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

Var LinearInParts(Context& c, Tape& tape, const Var& x, const Var& w, const char* name) {
  const int64_t N = w.x.dim(0), padded = (N + kRowAlign - 1) / kRowAlign * kRowAlign;
  const Var y = tape.Slice(tape.NewVar(c, name, {x.x.dim(0), x.x.dim(1), padded}), 2, 0, N);
  Run(c, tape, x, w, y);
  return y;
}

Var SplitLast(const Var& v, int64_t n, int64_t m) {
  return {v.x.Split(-1, n, m), v.dx.defined() ? v.dx.Split(-1, n, m) : TensorView()};
}

Var MergeLast(const Var& v) {
  const int last = v.x.rank() - 2;
  return {v.x.Merge(last), v.dx.defined() ? v.dx.Merge(last) : TensorView()};
}

}  // namespace weft
