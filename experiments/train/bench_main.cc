// weft bench step CONFIG: time of the training step.

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "experiments/run/environment.h"
#include "experiments/run/program.h"
#include "experiments/train/trainer.h"

namespace {

using namespace weft;

double MedianStepSeconds(Trainer& trainer, int64_t steps) {
  for (int i = 0; i < 3; ++i) trainer.Step();
  std::vector<double> seconds;
  for (int64_t i = 0; i < steps; ++i) {
    const auto start = std::chrono::steady_clock::now();
    trainer.Step();
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + steps / 2, seconds.end());
  return seconds[static_cast<size_t>(steps / 2)];
}

int Main(CLI::App& app, int argc, char** argv) {
  std::string what, config;
  int64_t steps = 9;
  bool json = false;
  app.add_option("WHAT", what, "step")->required()->check(CLI::IsMember({"step"}));
  app.add_option("CONFIG", config, "experiment, a TOML file")->required();
  app.add_option("--steps", steps, "timed steps after 3 warm-up steps")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_flag("--json", json, "machine-readable output: one line");
  const auto overrides = ParseCommandLine(app, argc, argv);
  const auto e = Experiment::Load(config, overrides);
  Stream stream(std::in_place_type<CpuStream>, static_cast<int>(e->threads));
  Trainer trainer(*e, Device{}, stream);
  const double seconds = MedianStepSeconds(trainer, steps);
  const double tokens = static_cast<double>(e->train.batch * e->train.length);
  const double gflops = PlanRun(*e, Device{}).training_flops_per_token * tokens / seconds * 1e-9;
  std::string pattern;
  for (const std::string& label : e->model.pattern) pattern += (pattern.empty() ? "" : "+") + label;
  const std::string shape = fmt::format("d{}_L{}_T{}_B{}", e->model.d_model, e->model.layers,
                                        e->train.length, e->train.batch);
  const int threads = std::get<CpuStream>(stream).threads();
  if (json) {
    const nlohmann::ordered_json row = {{"model", pattern == "attention" ? "transformer" : pattern},
                                        {"shape", shape},
                                        {"ms", seconds * 1e3},
                                        {"tokens_per_s", tokens / seconds},
                                        {"gflop_per_s", gflops},
                                        {"threads", threads},
                                        {"device", "cpu"},
                                        {"build", BuildDescription()}};
    fmt::print("{}\n", row.dump());
  } else {
    fmt::print(
        "{} {}: {:.1f} ms per step, {:.0f} tokens/s, {:.1f} GFLOP/s on {} threads (median of {})\n",
        pattern, shape, seconds * 1e3, tokens / seconds, gflops, threads, steps);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Times the training step: forward, backward, clipping and AdamW.");
  return RunProgram("bench", app, [&] { return Main(app, argc, argv); });
}
