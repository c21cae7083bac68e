#pragma once
// The results of a study in one file, for analysis: OUT/<study>/sweep.h5.
//
//   /cells  cell variant case <one column per axis> run_id state exit_code parameters
//           embedding_parameters head_parameters body_parameters flops_per_token
//           training_flops_per_token tokens seconds memory_bytes state_bytes device commit, and
//           where the sweep matches: matched_value residual_percent. `tokens` are those that the
//           finished model was made from; memory and decode state are as planned; device and commit
//           are "" where no rows were read.
//   /eval   cell variant case [seed] step tokens decayed name difficulty accuracy exact_match nll
//           labels chance
//   /train  cell step tokens loss
//   /       attributes format "weft-sweep", schema_version, study, question, base, axes, variants,
//           cases, cells_done, cells_left_out, sweep_toml, base_toml
//
// `decayed` is 1 at the end of a run and of each period of the schedule wsds: the points of a
// scaling law. `cell` is the row of /cells, which has a row for every cell. /eval and /train hold
// the cells that are done; with `unfinished`, what the others have written so far too. With `slim`,
// /train holds at most kSlimRows means per cell, over ranges of equal width in log tokens: the step
// is the last of its range, tokens and loss are means. Nothing else is lost.

#include "sweeps/study.h"

namespace weft {

struct Collected {
  std::string path;
  int64_t done = 0;
  std::vector<std::string> left_out;  // "name: state" of each cell whose rows are not in the file
  std::vector<std::string> broken;    // one line per cell whose files are broken
};

constexpr int64_t kSlimRows = 64;
struct CollectOptions {
  bool unfinished = false;
  bool slim = false;
};
Collected Collect(const Study& study, const CollectOptions& options);

}  // namespace weft
