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
//   long  = { task.pairs = 64, axes.seed = [0] }   with values of its own for an axis
//   [axes]                                   optional: keys and the values that they take
//   optim.lr = [1e-4, 3e-4]
//   seed     = [0, 1, 2]
//   order = ["seed"]                         optional: axes, "case" or "variant", first of all keys
//   [match]                                  optional: solve a key, see `weft params --help`
//   quantity = "body_parameters"             of the cell of variant `to` in the same case and axes
//   to       = "transformer"
//   by       = "model.d_ff"                  set by no variant or axis that is solved
//   variants = ["hybrid"]                    default: all but `to`
//   tolerance = 1                            per cent, above 0
//   multiple = 8                             values that are tried; default 1
//
// Cells are variants x cases x axes in the order of the file; the last axis varies fastest. They
// are started longest first. With order = ["seed", "case"] those of the first seed come first, among
// them those of the first case, so that what is cut off leaves whole comparisons behind. A config
// key is set in one place only. Whether a key exists is known to the trainer: see PlanStudy.
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
  int64_t round = 0;      // cells of a lower one are started first
  Settings reference;     // likewise of the cell that it is matched to; empty = it is not matched
};

struct Matching {
  std::string where;  // "sweeps/recall.toml:12"; "" = nothing is matched
  std::string quantity, to, by;
  double tolerance = 1;
  int64_t multiple = 1;
  std::vector<std::string> variants;
};

struct Sweep {
  std::string path, text;  // the file and what it holds
  std::string question, base, study;
  std::vector<std::string> axes;   // keys
  std::vector<std::string> order;  // of axes, "case" and "variant"
  Matching match;
  std::vector<Cell> cells;
};

Sweep ReadSweep(const std::string& path);

}  // namespace weft
