#pragma once
// Var-level wrappers of ops that blocks and several mixers share.

#include "arch/core/params.h"

namespace weft {

// y = x w^T.  x [B, T, K], w [N, K] -> y [B, T, N].
Var Linear(Context& c, Tape& tape, const Var& x, const Var& w, const char* name);
// The same for a y that is used in parts, and any N: the product also computes the rows behind w
// that are zero (params.h). So y's rows are apart by as many elements, and kernels can read its
// parts in packs.
Var LinearInParts(Context& c, Tape& tape, const Var& x, const Param& w, const char* name);

// Splits the last dimension of a Var into (n, m).
Var SplitLast(const Var& v, int64_t n, int64_t m);
// Merges the last two dimensions of a Var.
Var MergeLast(const Var& v);

}  // namespace weft
