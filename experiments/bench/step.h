#pragma once
// Measures the training step of an experiment.

#include <string>
#include <vector>

#include "experiments/train/trainer.h"

namespace weft {

struct StepTimes {
  // Median of rounds, of the mean over a round's few steps, with nothing but steps under way.
  double ms = 0;
  double tokens_per_second = 0;
  // Of products, attention, recurrence and convolution, counted from the ops. Attention's backward
  // counts five products: it computes the scores again.
  double flops_per_token = 0;
  // MFU = flops_per_token tokens_per_second / peak_flops, the dense bf16 rate on the maker's data
  // sheet; both 0 where that is not known and on the CPU.
  double peak_flops = 0, mfu = 0;
  // Since the start of the process: when the device was open, the trainer made, the first step
  // done.
  double device_seconds = 0, trainer_seconds = 0, first_step_seconds = 0;
  int64_t allocated_bytes = 0;  // arenas and scratch
  int64_t planned_bytes = 0;    // what RunPlan foresaw
  int64_t device_bytes = 0;     // in use on the GPU, with context and libraries; 0 on the CPU
  // Where the time goes when ops run one by one: calls per step and ms, longest first.
  struct Op {
    std::string name;
    int64_t calls = 0;
    double ms = 0;
  };
  std::vector<Op> ops;
};

// Runs `steps` steps in rounds of a few, after a few that are not timed.
StepTimes MeasureStep(const Experiment& experiment, const Device& device, Stream& stream,
                      int64_t steps);

// Several trainers of the experiment in one process, as a worker of a sweep has them: each in a
// thread with its own stream and graph, none waiting for another.
struct AtOnceTimes {
  int trainers = 1;
  double ms = 0;                 // of a step of one of them, mean
  double tokens_per_second = 0;  // of all
};
// The median of `rounds` rounds of `seconds` each.
AtOnceTimes MeasureAtOnce(const Experiment& experiment, const Device& device, int trainers,
                          int rounds, double seconds);

}  // namespace weft
