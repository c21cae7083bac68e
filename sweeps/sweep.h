#pragma once
// A sweep: one TOML file with a question, a base config and what varies.
//
//   question = "Which mixer keeps recall as the number of pairs grows?"
//   base     = "../experiments/recall.toml"  beside this file, else in the working directory
//   study    = "recall"                      folder of the runs; default: the file's name
//   [variants]                               the architectures; each sets one key or more
//   gdn    = { model.pattern = ["gated_delta"] }
//   hybrid = { model.pattern = ["gated_delta", "attention"], model.d_ff = 384 }
//   [cases]                                  optional: a second named set, e.g. one per task
//   short = { task.pairs = 8 }
//   [axes]                                   optional: keys and the values that they take
//   optim.lr = [1e-4, 3e-4]
//   seed     = [0, 1, 2]
//
// Cells are variants x cases x axes in the order of the file; the last axis varies fastest. A
// config key is set in one place only. Whether a key exists is known to the trainer: see PlanStudy.
//
// Errors: ExitCode::kUsage, naming the file and line, the key and what to do.

#include <string>
#include <vector>

#include "arch/core/config.h"

namespace weft {

struct Cell {
  std::string name;  // "hybrid/short/lr=0.0001/seed=0"; axes of one value are left out
  std::string variant;
  std::string case_name;  // "" without [cases]
  Settings axes;          // the value of every axis
  Settings settings;      // all that the cell changes in the base config: variant, case and axes
};

struct Sweep {
  std::string path, text;  // the file and what it holds
  std::string question, base, study;
  std::vector<std::string> axes;  // keys
  std::vector<Cell> cells;
};

Sweep ReadSweep(const std::string& path);

}  // namespace weft
