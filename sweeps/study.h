#pragma once
// A study: what a sweep plans, and what it leaves in OUT/<study>/.
//
//   sweep.toml             the sweep file as it was when the sweep was last started
//   base.toml              the base config, likewise: what the cells are made from
//   sweep.json             the cells with their settings, run ids and plans
//   sweep.h5               collected results, see collect.h
//   <run-id>/              one run directory per cell
//   <run-id>.stderr        what the cell says, while it runs or when it failed
//   failures/<run-id>.json why its last attempt failed
//   slurm/<n>/             a submission to a cluster, see slurm.h
//
// All state is in these files: a process that is killed loses nothing.

#include <optional>
#include <string>
#include <vector>

#include "sweeps/sweep.h"

namespace weft {

// What the trainer says of a cell before it runs.
struct Plan {
  std::string run_id;
  bool on_gpu = false;
  double gpu_share = 0;                                  // that it keeps busy
  int64_t total = 0, embedding = 0, head = 0, body = 0;  // parameters
  double flops_per_token = 0;                            // forward
  double training_flops_per_token = 0;                   // forward and backward
  int64_t tokens = 0, steps = 0;                         // of the whole run
  int64_t batch_tokens = 0, warmup_steps = 0;
  double lr = 0;
  std::vector<int64_t> decayed_tokens;  // where a decay ends, with the schedule wsds
  int64_t memory_bytes = 0, state_bytes = 0;
  double seconds = 0;  // estimate
  struct Match {
    std::string quantity, by;
    int64_t value = 0;
    double reference = 0, matched = 0, residual_percent = 0;
  };
  std::optional<Match> match;
};

struct PlannedCell {
  Cell cell;                     // without settings when read from sweep.json
  std::vector<std::string> set;  // "KEY=VALUE": all that the cell changes in the base config
  Plan plan;
};

struct Study {
  std::string directory;  // OUT/<study>
  std::string sweep_toml, base_toml, question, base, name;
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

// Asks the trainer for the plans of all cells, in one process per core:
//   trainer CONFIG --dry-run --json --cells <<< '{"set": ["KEY=VALUE", ...], "match": {...}}'
// Settings that the trainer refuses are reported with their place in the sweep file and the
// trainer's exit code; two cells that are the same run are an error. Writes nothing.
Study PlanStudy(const Sweep& sweep, const std::string& out, const std::string& trainer);

// The arguments of weft-train that make a cell, without the program.
std::vector<std::string> ArgumentsOf(const Study& study, const PlannedCell& cell, int threads);

void WriteStudy(const Study& study);
// From OUT/<study>; kData when no sweep was started there or its files are broken.
Study ReadStudy(const std::string& directory);

// Why the last attempt at a cell failed; the next attempt clears it.
void WriteFailure(const Study& study, const PlannedCell& cell, int exit_code,
                  const std::string& error);
void ClearFailure(const Study& study, const PlannedCell& cell);

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
