#pragma once
// How many tokens an architecture needs to reach the loss with which another one ends, read off
// measured curves: no law is assumed.

#include <span>
#include <string>
#include <vector>

#include "analysis/fit/bootstrap.h"
#include "analysis/fit/points.h"

namespace weft {

struct Parity {
  std::string size, architecture;
  double target = 0;            // the reference's last loss
  double reference_tokens = 0;  // where it was measured
  // Where the curve, linear in ln D, reaches the target first, and from where on it stays there;
  // infinity if it never does. Not below the first measurement.
  double first = 0, for_good = 0;
  int seeds = 1;              // the smaller number of the two
  bool has_interval = false;  // both have several seeds, and there are draws
  Interval share;             // of first / reference_tokens, resampling seeds
};

struct ParityTable {
  std::vector<Parity> rows;
  std::vector<std::string> notes;  // sizes that have no partner
};

// Curves of equal `size` are compared, or of equal n where there are no sizes; losses are averaged
// over seeds at the token counts that all seeds have. kData when nothing can be compared.
ParityTable TokensToParity(std::span<const Point> curves, const std::string& reference,
                           const BootstrapOptions& options, double level);

}  // namespace weft
