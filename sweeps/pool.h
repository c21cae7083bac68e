#pragma once
// Runs the cells of a study on this machine, several at a time.

#include <string>
#include <vector>

#include "sweeps/study.h"

namespace weft {

// Where cells run.
struct Place {
  int slots = 1;        // cells at a time
  bool shared = false;  // they share one process of the trainer, instead of having one each
  std::string gpu;      // CUDA_VISIBLE_DEVICES of its processes; "" = as it is here
  int64_t bytes = 0;    // that its cells may plan with together; 0 = no limit
  double shares = 0;    // that its cells may keep busy together; 0 = no limit
};

struct PoolOptions {
  std::string trainer;  // path of weft-train
  std::vector<Place> places;
  int threads = 1;  // of each cell

  int slots() const;  // of all places
};

// More at a time add nothing, even of small ones.
inline constexpr int kCellsPerGpu = 8;
// A shared place for each GPU that the trainer may use, or for those of `devices` alone, with so
// many slots; 0 = as many as keep the GPU busy, at most kCellsPerGpu. Error kUsage when there is no
// such GPU.
std::vector<Place> PlacesOnGpus(const std::string& trainer, int slots,
                                const std::vector<int>& devices);

// Seconds until `jobs` workers are through: `running` holds what each busy one has left, `queued`
// is taken in order.
double Makespan(const std::vector<double>& running, const std::vector<double>& queued, int jobs);

// Brings the cells to their end that are not there yet: those that were started are resumed, a cell
// that another process writes is waited for, lower rounds are taken first, in a round the longest.
// A cell that fails is noted in the study's files and stops no other; one that exits with kRequeue
// is run again. Diverged cells are left: they would diverge again. When a process that several
// cells share dies, they are run again in processes of their own, so that the one at fault is
// found. Progress goes to stderr. Returns the signal that stopped it, after all children have
// ended; 0 = none did.
int RunPool(const Study& study, const std::vector<size_t>& cells, const PoolOptions& options);

}  // namespace weft
