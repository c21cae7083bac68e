#pragma once
// Checkpoints of a run: checkpoints/step-00001000/{model,optimizer}.safetensors and state.json.
//
// A checkpoint is written into a directory beside, fsynced and renamed as a whole, so a
// half-written one is never seen. state.json holds its own checksum and those of the two files'
// headers, which in turn cover every tensor.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "experiments/run/safetensors.h"

namespace weft {

struct Checkpoint {
  int64_t step = 0;
  std::string path;
};

// `state` is a JSON object: counters, random state, journal size. Replaces a checkpoint of that
// step.
Checkpoint SaveCheckpoint(const std::string& run_directory, int64_t step,
                          std::span<const NamedTensor> model,
                          std::span<const NamedTensor> optimizer, const std::string& state);

std::vector<Checkpoint> ListCheckpoints(const std::string& run_directory);  // ascending steps
std::optional<Checkpoint> FindLatest(const std::string& run_directory);

// Fills the targets and returns the state. A broken file is an error that names the older
// checkpoint to use; nothing falls back by itself. With an empty `optimizer` only the model is
// loaded.
std::string LoadCheckpoint(const Checkpoint& checkpoint, std::span<const TensorTarget> model,
                           std::span<const TensorTarget> optimizer);
// The state alone.
std::string LoadState(const Checkpoint& checkpoint);

// Removes all but the newest `keep` >= 1 checkpoints and that of step `needed`.
void PruneCheckpoints(const std::string& run_directory, int64_t keep, int64_t needed = -1);

}  // namespace weft
