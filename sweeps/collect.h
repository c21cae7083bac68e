#pragma once
// The results of a study in one file, for analysis: OUT/<study>/sweep.h5.
//
//   /cells  cell variant case <one column per axis> run_id state exit_code parameters
//           embedding_parameters head_parameters body_parameters flops_per_token
//           training_flops_per_token state_bytes tokens seconds, and where the sweep matches:
//           matched_value residual_percent. `tokens` are those that the finished model was made
//           from.
//   /eval   cell variant case [seed] step tokens decayed name difficulty accuracy
//           exact_match nll labels chance
//   /train  cell step tokens loss
//   /       attributes format "weft-sweep", schema_version, study, question, base, axes, variants,
//           cases, cells_done, cells_left_out, sweep_toml
//
// `decayed` is 1 at the end of a run and of each period of the schedule wsds: the points of a
// scaling law. `cell` is the row of /cells, which has a row for every cell. /eval and /train hold
// the cells that are done; with `unfinished`, what the others have written so far too.

#include "sweeps/study.h"

namespace weft {

struct Collected {
  std::string path;
  int64_t done = 0;
  std::vector<std::string> left_out;  // "name: state" of each cell whose rows are not in the file
  std::vector<std::string> broken;    // one line per cell whose files are broken
};
Collected Collect(const Study& study, bool unfinished);

}  // namespace weft
