// links: weft_tasks
// Tokens per second of every task's generator on one core: at its default knobs, and with every
// choice of a knob.

#include <benchmark/benchmark.h>

#include <string>

#include "arch/core/config.h"
#include "synth-tasks/core/task.h"

namespace weft {
namespace {

void Generate(benchmark::State& state, const TaskSpec& spec, const std::string& knob) {
  const auto config = spec.config();
  ConfigVisitor visitor;
  visitor.Section("task", *config);
  if (!knob.empty()) Apply({ParseOverride("task." + knob, "benchmark")}, visitor.fields());
  const auto task = config->Make();
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

benchmark::internal::Benchmark* Register(const TaskSpec& spec, const std::string& knob) {
  const std::string name = spec.name + (knob.empty() ? "" : "/" + knob);
  return benchmark::RegisterBenchmark(
      name.c_str(), [&spec, knob](benchmark::State& state) { Generate(state, spec, knob); });
}

const bool registered = [] {
  for (const TaskSpec& spec : AllTasks()) {
    Register(spec, "")->Arg(8)->Arg(64)->Arg(128);
    const auto config = spec.config();
    ConfigVisitor visitor;
    config->Visit(visitor);
    for (const ConfigField& field : visitor.fields()) {
      for (const std::string& choice : field.choices) {
        if (choice == *std::get<std::string*>(field.value)) continue;
        Register(spec, field.path + "=" + choice)->Arg(64);
      }
      if (std::holds_alternative<bool*>(field.value)) {
        const bool value = *std::get<bool*>(field.value);
        Register(spec, field.path + (value ? "=false" : "=true"))->Arg(64);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace weft
