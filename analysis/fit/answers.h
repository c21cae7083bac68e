#pragma once
// What fitted laws say about sizes, token counts, losses and budgets, with intervals where there
// are draws, and compared with a reference architecture.
//
//   n and d        loss        L(n, d); difference to the reference; tokens with which the
//                              architecture reaches the reference's loss, savings = d / tokens
//   n and loss     tokens      D that reaches the loss; savings = D_reference / D
//   d and loss     parameters  N that reaches the loss
//   flops          optimal     the best split of the budget, its loss
//   loss alone     compute     the least budget that reaches the loss; savings likewise
//
// A budget is C = k N^g D FLOPs, see law.h.
//
// Savings above 1 favour the architecture.

#include <string>
#include <vector>

#include "analysis/fit/bootstrap.h"
#include "analysis/fit/table.h"

namespace weft {

struct Asked {
  std::vector<double> n, d, loss, flops;
  std::string reference;
  double level = 0.95;
};

// kUsage for a reference that is not there, or n or d without a partner.
std::vector<Table> Answer(const Ensemble& ensemble, const Asked& asked);

}  // namespace weft
