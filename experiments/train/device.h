#pragma once
// Where an experiment runs, from its `device` and `train.precision`.

#include <memory>
#include <string>

#include "experiments/train/experiment.h"
#include "kernels/base/arena.h"
#include "kernels/base/stream.h"

namespace weft {

struct Device {
  bool cuda = false;
  std::string name;           // "cpu" or the GPU's
  DType dtype = DType::kF32;  // of activations
  bool deterministic = true;  // as train.deterministic

  Memory memory() const { return cuda ? Memory::kDevice : Memory::kHost; }
  // Bytes that a run may take: those that are free on the GPU, or what this process may use.
  int64_t MemoryLimit() const;
};

// From "auto", "cpu" or "cuda" and "auto", "f32" or "bf16". "auto" is the first GPU where there is
// one, and bf16 on it. "cuda" needs none before its stream is opened, so that a run can be planned
// elsewhere. Error kUsage for bf16 on the CPU.
Device ChooseDevice(const std::string& device, const std::string& precision);
Device ChooseDevice(const Experiment& e);
// `threads` of the CPU, 0 = one per core. Error kUsage when the GPU is not there.
std::unique_ptr<Stream> OpenStream(const Device& device, int64_t threads);

}  // namespace weft
