#pragma once
// Approaches 1 and 2 of Hoffmann et al. 2022: how the best size grows with the budget, without a
// law for the loss. Points are of one architecture.
//
//   N_opt(C) = k C^a,   D_opt(C) = C / (c N_opt),   c = C / (N D) of the points, 6 for C = 6 N D

#include <span>
#include <string>
#include <vector>

#include "analysis/fit/bootstrap.h"
#include "analysis/fit/points.h"

namespace weft {

struct PowerLaw {
  double coefficient = 0, exponent = 0;
  double At(double x) const;
};

// The best model of a budget.
struct Optimum {
  double flops = 0;
  int points = 0;
  double n = 0, d = 0, loss = 0;
  std::string excluded;  // why it does not count, or ""
};

struct Frontier {
  std::vector<Optimum> budgets;
  PowerLaw n, d;  // of C
  std::vector<std::string> warnings;
};

// Approach 2: in each budget (points whose FLOPs agree to 10 %), the minimum of the parabola
// through loss against ln N. Budgets with fewer than three sizes, without a minimum, or with one
// outside their sizes do not count. kData with fewer than two budgets that count.
Frontier FitIsoFlop(std::span<const Point> points, std::span<const double> weights = {});

// Approach 1: at each of many budgets, the size whose curve of loss against FLOPs, interpolated in
// logs, is lowest. Budgets where the smallest or the largest size wins do not count: a size beyond
// might be better. kData with fewer than two sizes that count.
Frontier FitEnvelope(std::span<const Point> points);

// Intervals of the exponent a of approach 2, resampling within budgets.
Interval IsoFlopInterval(std::span<const Point> points, const BootstrapOptions& options,
                         double level);

}  // namespace weft
