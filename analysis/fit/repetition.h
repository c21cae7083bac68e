#pragma once
// Fits how much repeated tokens are worth: R_D and R_N of law.h, by the Huber loss of chinchilla.h.

#include <span>

#include "analysis/fit/chinchilla.h"

namespace weft {

// R_D and R_N, with the law held that the rows with d <= unique determine. Points of one
// architecture; kData with fewer than two rows with d > unique. `start` saves the search for the
// law where it is known nearly.
struct RepetitionFit {
  Law law;
  Repetition repetition;
  double objective = 0;  // over the rows that repeat
  int fresh = 0, repeated = 0;
};
RepetitionFit FitRepetition(std::span<const Point> points, const FitOptions& options,
                            std::span<const double> weights = {}, const Law* start = nullptr);

}  // namespace weft
