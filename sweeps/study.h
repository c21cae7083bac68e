#pragma once
// A study: what a sweep plans, and what it leaves in OUT/<study>/.
//
//   sweep.toml   the sweep file as it was when the sweep was last started
//   sweep.json   its cells with their run ids and plans, and the errors of cells that failed
//   sweep.h5     collected results, see collect.h
//   <run-id>/    one run directory per cell; <run-id>.stderr beside it, while the cell runs or
//                when it failed
//
// All state is in these files: a process that is killed loses nothing.

#include <string>
#include <vector>

#include "sweeps/sweep.h"

namespace weft {

// What the trainer says of a cell before it runs.
struct Plan {
  std::string run_id;
  int64_t total = 0, embedding = 0, head = 0, body = 0;  // parameters
  double flops_per_token = 0;                            // forward
  double training_flops_per_token = 0;                   // forward and backward
  int64_t tokens = 0, steps = 0;                         // of the whole run
  int64_t memory_bytes = 0, state_bytes = 0;
  double seconds = 0;  // estimate
};

struct PlannedCell {
  Cell cell;  // without settings when read from sweep.json
  Plan plan;
  // Of the last attempt, when it failed; 0 and "" otherwise.
  int exit_code = 0;
  std::string error;
};

struct Study {
  std::string directory;  // OUT/<study>
  std::string sweep_toml, question, base, name;
  std::vector<std::string> axes;
  std::vector<PlannedCell> cells;

  std::string RunDirectoryOf(const PlannedCell& cell) const {
    return directory + "/" + cell.plan.run_id;
  }
  std::string ErrorFileOf(const PlannedCell& cell) const {
    return RunDirectoryOf(cell) + ".stderr";
  }
  std::string ToJson() const;
};

// Asks the trainer for the plan of every cell, in parallel processes:
//   trainer CONFIG --set KEY=VALUE ... --dry-run --json
// Settings that the trainer refuses are reported with their place in the sweep file and the
// trainer's exit code; two cells that are the same run are an error. Writes nothing.
Study PlanStudy(const Sweep& sweep, const std::string& out, const std::string& trainer,
                int threads_per_cell);

// The arguments of weft-train that make a cell, without the program.
std::vector<std::string> ArgumentsOf(const Sweep& sweep, const Cell& cell, int threads);

void WriteStudy(const Study& study);
// From OUT/<study>; kData when no sweep was started there or its files are broken.
Study ReadStudy(const std::string& directory);

struct CellState {
  std::string state;   // "queued", "running", "stopped" (unfinished), "done", "failed", "diverged"
  int exit_code = -1;  // -1 = has not ended yet
  int64_t step = 0, steps = 0;
  std::string message;  // why it failed
};
CellState StateOf(const Study& study, const PlannedCell& cell);

// Whether a process holds the lock of the run directory.
bool IsBeingWritten(const std::string& run_directory);

}  // namespace weft
