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

  Memory memory() const { return cuda ? Memory::kDevice : Memory::kHost; }
  // Bytes that a run may take: those that are free on the GPU, or what this process may use.
  int64_t MemoryLimit() const;
};

// "auto" is the first GPU where there is one. "cuda" needs none before its stream is opened, so
// that a run can be planned elsewhere. Error kUsage for bf16 on the CPU.
Device ChooseDevice(const Experiment& e);
// Error kUsage when the GPU is not there.
std::unique_ptr<Stream> OpenStream(const Experiment& e, const Device& device);

}  // namespace weft
