#pragma once
// The results of a study in one file, for analysis: OUT/<study>/sweep.h5.
//
//   /cells  cell variant case <one column per axis> run_id state exit_code parameters
//           embedding_parameters head_parameters body_parameters tokens flops_per_token seconds
//   /eval   cell variant case [seed] step tokens name difficulty accuracy nll labels chance
//   /train  cell step tokens loss
//   /       attributes format "weft-sweep", schema_version, study, question, base, axes, variants,
//           cases, sweep_toml
//
// `cell` is the row of /cells. Numbers come from the journals of the runs, so that a run in
// progress is in it too.

#include "sweeps/study.h"

namespace weft {

// Returns the path of the file, and appends one line per cell whose files are broken to `problems`.
std::string Collect(const Study& study, std::vector<std::string>& problems);

}  // namespace weft
