#include "arch/ops/linear.h"

#include "kernels/matmul/matmul.h"

namespace weft {
namespace {

// Rows begin at multiples of this many elements, so that kernels can read parts of them in packs.
constexpr int64_t kRowAlign = 16;

}  // namespace

Var Linear(Context& c, Tape& tape, const Var& x, const Var& w, const char* name) {
  const int64_t N = w.x.dim(0), padded = (N + kRowAlign - 1) / kRowAlign * kRowAlign;
  Var y = tape.NewVar(c, name, {x.x.dim(0), x.x.dim(1), padded});
  if (padded != N) y = tape.Slice(y, 2, 0, N);
  const MatmulFwd fwd{x.x, w.x, y.x};
  tape.Run(c, fwd, MatmulBwd{fwd, y.dx, GradOf(x), GradOf(w)});
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
