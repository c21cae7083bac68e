// links: weft_tasks
// Tokens per second of every task's generator on one core, at its default knobs.

#include <benchmark/benchmark.h>

#include "synth-tasks/core/task.h"

namespace weft {
namespace {

void Generate(benchmark::State& state, const TaskSpec& spec) {
  const auto task = spec.config()->Make();
  Sample sample;
  uint64_t index = 0;
  int64_t tokens = 0;
  for (auto _ : state) {
    task->Generate(1, Split::kTrain, index++, state.range(0), false, sample);
    benchmark::DoNotOptimize(sample.labels.data());
    tokens += static_cast<int64_t>(sample.tokens.size());
  }
  state.SetItemsProcessed(tokens);
  state.counters["tokens_per_sample"] =
      static_cast<double>(tokens) / static_cast<double>(state.iterations());
}

const bool registered = [] {
  for (const TaskSpec& spec : AllTasks()) {
    benchmark::RegisterBenchmark(spec.name,
                                 [&spec](benchmark::State& state) { Generate(state, spec); })
        ->Arg(8)
        ->Arg(64)
        ->Arg(128);
  }
  return true;
}();

}  // namespace
}  // namespace weft
