#pragma once
// Intervals by resampling (Efron 1979), percentiles of refits.
//
// A draw takes, for each architecture, as many (n, d) cells as there are, with replacement
// (kPoints); or keeps the cells and takes, in each, as many of its seeds with replacement (kSeeds);
// or both. Every draw is refitted from the minima of the fit. Draws that cannot determine the law
// are drawn again. A draw depends on (seed, its number) alone, not on threads.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "analysis/fit/chinchilla.h"

namespace weft {

enum class Resample { kPoints, kSeeds, kBoth };

struct BootstrapOptions {
  int draws = 1000;
  Resample resample = Resample::kPoints;
  uint64_t seed = 0;
  int threads = 1;
};

// Weights of the points, the number of times that a draw takes each. Points with equal `stratum`
// stand in for one another.
class Resampler {
 public:
  Resampler(std::span<const Point> points, const std::vector<std::string>& stratum,
            const BootstrapOptions& options);
  // `attempt` tells the draws apart that were taken in vain.
  std::vector<double> Weights(int draw, int attempt) const;

 private:
  using Cell = std::vector<size_t>;        // points with equal architecture, n and d
  std::vector<std::vector<Cell>> strata_;  // cells that stand in for one another
  size_t points_ = 0;
  Resample resample_;
  uint64_t seed_;
};

// fn(0), ..., fn(count - 1), on several threads; the first exception is thrown again.
void InParallel(int count, int threads, const std::function<void(int)>& fn);

// Laws in the order of `architectures`, and the same for each draw.
struct Ensemble {
  std::vector<std::string> architectures;
  std::vector<Law> laws;
  std::vector<std::vector<Law>> draws;
  int redrawn = 0;  // draws that could not determine the law
};
Ensemble Bootstrap(std::span<const Point> points, const FitOptions& fit_options,
                   const std::vector<Fit>& fits, const BootstrapOptions& options);

struct Interval {
  double low = 0, high = 0;
  double deviation = 0;  // standard deviation over the draws
  int undefined = 0;     // draws without a value (0/0, infinity/infinity): left out
};
// Quantiles (1 -+ level) / 2 of values, interpolated linearly; NaN without values.
Interval IntervalOf(std::vector<double> values, double level);
using Statistic = std::function<double(std::span<const Law>)>;
Interval IntervalOf(const Ensemble& ensemble, double level, const Statistic& statistic);

}  // namespace weft
