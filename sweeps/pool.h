#pragma once
// Runs the cells of a study on this machine, several at a time.

#include <string>
#include <vector>

#include "sweeps/study.h"

namespace weft {

struct PoolOptions {
  std::string trainer;  // path of weft-train
  int jobs = 1;         // cells at a time
  int threads = 1;      // of each cell
};

// Seconds until `jobs` workers are through: `running` holds what each busy one has left, `queued`
// is taken in order.
double Makespan(const std::vector<double>& running, const std::vector<double>& queued, int jobs);

// Brings the cells to their end that are not there yet: those that were started are resumed, a cell
// that another process writes is waited for, lower rounds are taken first, in a round the longest.
// A cell that fails is noted in the study's files and stops no other; one that exits with kRequeue
// is run again. Diverged cells are left: they would diverge again. Progress goes to stderr. Returns
// the signal that stopped it, after all children have ended; 0 = none did.
int RunPool(const Study& study, const std::vector<size_t>& cells, const PoolOptions& options);

}  // namespace weft
