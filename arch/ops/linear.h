#pragma once
// Var-level wrappers of ops that blocks and several mixers share.

#include "arch/core/tape.h"

namespace weft {

// y = x w^T.  x [B, T, K], w [N, K] -> y [B, T, N].
Var Linear(Context& c, Tape& tape, const Var& x, const Var& w, const char* name);
// The same for a y that is used in parts: its rows begin at multiples of 16 elements, whatever N
// is, so that kernels can read the parts in packs.
Var LinearInParts(Context& c, Tape& tape, const Var& x, const Var& w, const char* name);

// Splits the last dimension of a Var into (n, m).
Var SplitLast(const Var& v, int64_t n, int64_t m);
// Merges the last two dimensions of a Var.
Var MergeLast(const Var& v);

}  // namespace weft
